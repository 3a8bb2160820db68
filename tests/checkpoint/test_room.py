"""The room that checkpoints take is predicted to the last tensor, and missing room is said before a run starts."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import load_file

from cluster.commands.pretrain import train
from cluster.pipelines.completion import complete
from cluster.run_directory import RunDirectory
from ssl_dist.checkpoint import Checkpoints
from ssl_dist.checkpoint.room import checkpoint_bytes, expect_room
from ssl_dist.collectives import World
from ssl_dist.config import ResolvedConfig
from ssl_dist.errors import RunError
from ssl_dist.training.loop import StopRequests, pretrain
from tests.helpers import resolved_config
from tune.runner import _fit
from tune.sweep import Sweep

BYOL = {"method": {"name": "byol", "projection_hidden": 16, "projection_dim": 8}, "augment": {"recipe": "byol-small"}}


@pytest.mark.parametrize(
    "settings",
    [
        {"optim": {"name": "adamw"}},
        {"optim": {"name": "sgd", "momentum": 0.0}},
        {"optim": {"name": "lars"}},
        {**BYOL, "optim": {"name": "sgd"}},  # its slow copy has no optimizer state
    ],
)
def test_a_checkpoint_has_the_predicted_size(small_store: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    config = resolved_config(small_store, probe=None, epochs=0.25, **settings)
    pretrain(config, tmp_path, World(), StopRequests())
    files = Checkpoints(tmp_path).list()[0].glob("*.safetensors")
    tensors = [tensor for file in files for tensor in load_file(file).values()]
    steps = sum(tensor.nbytes for tensor in tensors if tensor.ndim == 0)  # AdamW's and BatchNorm's counters
    assert checkpoint_bytes(config) == pytest.approx(sum(tensor.nbytes for tensor in tensors), abs=steps)


def test_torchs_compiler_is_not_imported_to_predict_it() -> None:
    """Drawing values for tensors without any would import it, in three seconds of each start."""
    code = "import sys; from ssl_dist import methods; from ssl_dist.config import RunConfig\n"
    code += "for name in methods.names():\n    recipe = name.replace('_', '-') + '-cifar10'\n"
    code += "    RunConfig.load(recipe).method_without_values()\n"
    code += "    assert 'torch._dynamo' not in sys.modules, name"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def config(small_store: Path) -> ResolvedConfig:
    return resolved_config(small_store, probe=None, epochs=10, checkpoint={"keep": 3, "keep_best": 2})


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return the disk that all folders are on; its ``free`` bytes can be set."""
    disk = SimpleNamespace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    return disk


def sweep_of(config: ResolvedConfig) -> Sweep:
    space: dict[str, Any] = {"optim.lr": {"choice": [0.1, 0.2]}}
    return Sweep.make(recipe=config, space=space, search="grid", scheduler="none")


def on_two(config: ResolvedConfig) -> ResolvedConfig:
    """Return the config of two workers; one looks for room itself, see tests/cluster/test_lone.py."""
    return ResolvedConfig.from_tree({**config.model_dump(), "cluster": {"workers": 2}}, "on_two")


@pytest.mark.parametrize(
    ("start", "needed"),
    [
        (lambda config, folder: train(RunDirectory.create(folder, config), on_two(config), as_json=False), 4),
        (lambda config, folder: complete(folder, on_two(config), Console(quiet=True)), 4),
        (lambda config, folder: _fit(sweep_of(config), folder, 1), 7),  # two trials, and the one that is written
    ],
    ids=["pretrain", "a stage", "a sweep"],
)
def test_a_full_disk_is_said_before_anything_starts(
    config: ResolvedConfig, disk: SimpleNamespace, tmp_path: Path, start: Any, needed: int
) -> None:
    disk.free = needed * checkpoint_bytes(config) - 1
    with pytest.raises(RunError, match=r"need .* GB each, and there is room for .* GB: choose another disk"):
        start(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_warning_says_that_the_best_may_not_fit(
    config: ResolvedConfig, disk: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = checkpoint_bytes(config)
    with caplog.at_level(logging.WARNING):
        for free, said in ((6 * one, 0), (6 * one - 1, 1), (4 * one, 1)):
            caplog.clear()
            disk.free = free
            expect_room(tmp_path, [config])
            assert len(caplog.records) == said
    disk.free = 4 * one - 1
    with pytest.raises(RunError):
        expect_room(tmp_path, [config])


def test_a_short_run_needs_less_and_checkpoints_that_are_there_are_room(
    config: ResolvedConfig, disk: SimpleNamespace, tmp_path: Path
) -> None:
    disk.free = 2 * checkpoint_bytes(config)
    expect_room(tmp_path, [config.model_copy(update={"epochs": 2.0})])
    with pytest.raises(RunError):
        expect_room(tmp_path, [config])
    there = Checkpoints(tmp_path).path(1)
    there.mkdir(parents=True)
    (there / "model.safetensors").write_bytes(bytes(2 * checkpoint_bytes(config)))
    expect_room(tmp_path, [config])
