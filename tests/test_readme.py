"""The README's commands run as they stand, on a small tar under CIFAR-10's name; its file tree is the repository's."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ssl_dist import machine
from tests.command import Command
from tests.conftest import write_images

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.partition("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


def in_a_process(line: str) -> tuple[int, str, str]:
    """Run a command that starts Ray; return its exit code and what it printed.

    Where bfloat16 would take three times as long, do as the command advises. The network has fewer channels.
    """
    faster = ["--set", "backbone.width=8", *([] if machine.has_bf16() else ["--set", "engine.precision=fp32"])]
    words = [sys.executable, "-m", "ssl_dist", *shlex.split(line)[1:], *faster]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_the_commands_of_a_real_run(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for seed, (split, per_class) in enumerate({"train": 130, "test": 20}.items()):  # 512 are a batch
        write_images(tmp_path / split, num_classes=4, per_class=per_class, size_px=32, seed=seed)
        with tarfile.open(tmp_path / f"cifar10-{split}.tar", "w") as archive:
            archive.add(tmp_path / split, arcname=split)
    monkeypatch.chdir(tmp_path)
    ran = [line for line in COMMANDS if line.startswith("ssl-dist")]
    for line in ran:
        code, out, err = in_a_process(line) if "pretrain" in line else command(*shlex.split(line)[1:])
        assert code == 0, f"{line}\n{out}\n{err}"
    assert len(ran) >= 6
    here: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(block, here)
    assert here["features"].shape == (80, here["encoder"].dim)
    [logs] = [command.split()[-1] for command in COMMANDS if command.startswith("tensorboard")]
    assert list((tmp_path / logs / "tensorboard").glob("events.*"))
    assert (tmp_path / "runs" / "cifar10" / "report.html").is_file()


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = [command.split()[1] for command in COMMANDS if command.startswith("make ")]
    assert {"demo", "test"} <= set(targets)
    assert all(f"\n{target}:" in makefile for target in targets)


def test_no_command_is_left_out() -> None:
    assert {command.split()[0] for command in COMMANDS} == {"make", "ssl-dist", "tensorboard", "ray"}
    hosts = (ROOT / "tests" / "cluster" / "test_hosts.py").read_text()
    for command in (command.split()[1] for command in COMMANDS if command.startswith("ray ")):
        assert f'ray("{command}"' in hosts, "make test-cluster runs it on hosts"


def test_the_file_tree_is_the_repositorys() -> None:
    tree = README.split("## The house")[1].split("```")[1]
    named = set(re.findall(r"^  (\S+?)/?\s", tree, re.MULTILINE))
    present = {path.name for path in (ROOT / "ssl_dist").iterdir() if not path.name.startswith("__")}
    assert named == present


def anchors(page: Path) -> set[str]:
    """Return the anchors that a Markdown page's headings have in a browser."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_pictures_and_pages_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\((?!http)(\S+?)\)", text):
        name, _, anchor = link.partition("#")
        there = page.parent / name if name else page
        assert there.exists(), link
        assert not anchor or anchor in anchors(there), link
    for name in re.findall(r"`(ssl_dist/\S+\.py)`", text):
        assert (ROOT / name).exists(), name
