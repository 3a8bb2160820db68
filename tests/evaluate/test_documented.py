"""The commands of docs/evaluation.md run as they stand, on a small store and a run of two checkpoints."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
from pathlib import Path

import pytest

from ssl_dist.checkpoint import State
from tests.command import Command
from tests.helpers import save, small_config

PAGE = (Path(__file__).parent.parent.parent / "docs" / "evaluation.md").read_text()
COMMANDS = [
    line.partition("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
    if re.match(r"ssl-dist evaluate (?!finetune|semi)", line)  # those start Ray
]


@pytest.fixture(scope="module")
def folder(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("documented")
    for part in ("train", "test"):
        shutil.copytree(small_store, path / "stores" / f"cifar10-{part}")
    config = small_config(small_store, batch={"size": 48, "micro": 48})  # one forward pass for all images
    for step in (2, 6):
        weights = small_config(small_store, seed=step).initial_method().state_dict()
        save(State(weights, {}), path / "runs" / "cifar10", step, config)
    return path


@pytest.mark.parametrize("line", COMMANDS)
def test_a_documented_command_runs(command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    if "umap" in line and importlib.util.find_spec("umap") is None:
        pytest.skip("umap-learn is not installed")
    monkeypatch.chdir(folder)
    done = command(*shlex.split(line)[1:])
    assert done.code == 0, done
    for named in re.findall(r"--out (\S+)", line):
        assert (folder / named).stat().st_size > 10_000


def test_the_commands_are_found() -> None:
    assert len(COMMANDS) == 13
