"""Runs of ten steps for tests: how they are started, and what they must equal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster import worker
from cluster.launch import launch
from cluster.run_directory import RunDirectory
from ssl_dist.checkpoint import Checkpoints, verify
from ssl_dist.config import ResolvedConfig
from tests.gloo import GlooPool
from tests.helpers import differences, resolved_config

EVERY_STEP = {"monitor__every_steps": 1, "probe": None, "epochs": 10 * 12 / 51, "checkpoint__every_epochs": 5 * 12 / 51}


def start(config: ResolvedConfig, directory: Path) -> dict[str, Any]:
    """Launch a new run, and return its last metrics."""
    return launch(config, RunDirectory.create(directory, config), Console(quiet=True))


def train_undisturbed(pool: GlooPool, workers: int, store: Path, directory: Path) -> Path:
    """Train in the processes of a pool, without a driver; what a launched run reaches is compared with it."""
    config = resolved_config(store, cluster__workers=workers, **EVERY_STEP)
    RunDirectory.create(directory, config)
    settings = {"config": config.model_dump(mode="json"), "directory": str(directory), "here": False}
    assert pool.run(_train, settings)[0]["step"] == 10
    return directory


def _train(rank: int, size: int, settings: dict[str, Any]) -> dict[str, float]:
    return worker.train(settings)


def losses(run: Path) -> list[float]:
    """Return the losses of the ten steps; of a step that was done twice, the last."""
    found = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        if "train/loss" in values:
            found[values["step"]] = values["train/loss"]
    assert sorted(found) == list(range(1, 11))
    return [found[step] for step in range(1, 11)]


def started_at(run: Path) -> list[int]:
    """Return the step of each start of the workers."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if "plan/total_steps" in line]


def expect_the_same(run: Path, undisturbed: Path) -> None:
    """Expect the same losses and the same checkpoint after step 10, bit for bit."""
    assert losses(run) == losses(undisturbed)
    assert differing_tensors(run, undisturbed) == []


def differing_tensors(a: Path, b: Path) -> list[str]:
    """Return the names of the tensors that differ in the checkpoints of two runs after step 10."""
    states = [verify(Checkpoints(run).path(10)).load() for run in (a, b)]
    return [name for ours, theirs in zip(*states, strict=True) for name in differences(ours, theirs)]
