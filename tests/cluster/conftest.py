"""Fixtures: one Ray for the runs of a module, a pretrained run, runs that end without training, and few labels."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.connect import RAY_ENVIRONMENT
from cluster.run_directory import RunDirectory
from ssl_dist.checkpoint import Checkpoints, State
from ssl_dist.checkpoint.pretrained import read
from ssl_dist.config import ResolvedConfig
from ssl_dist.store import ImageStore
from tests.helpers import save, small_config, train


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """Start a Ray that the runs of a module share."""
    import ray

    os.environ.update({**RAY_ENVIRONMENT, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"})
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let every run end at once with its initial weights; return the list of the runs' names."""
    runs = []

    def launch(config: ResolvedConfig, run: RunDirectory, *_: object) -> dict[str, Any]:
        step = config.plan().total_steps
        Checkpoints(run.path).save(step, config, State(config.initial_method().state_dict(), {}))
        runs.append(run.path.name)
        return {"step": step}

    monkeypatch.setattr("cluster.pipelines.completion.launch", launch)
    monkeypatch.setattr("cluster.launch.launch", launch)  # which `pretrain` imports when it is called
    return runs


@pytest.fixture
def few_labels(small_store: Path, tmp_path: Path) -> Path:
    """Write a label file with four labels of each class."""
    labels = ImageStore(small_store).labels
    few = np.full_like(labels, -1)
    chosen = np.concatenate([np.flatnonzero(labels == label)[:4] for label in range(3)])
    few[chosen] = labels[chosen]
    np.save(tmp_path / "few.npy", few)
    return tmp_path / "few.npy"


@pytest.fixture(scope="module")
def pretrained(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a run of two steps of SimCLR."""
    run = tmp_path_factory.mktemp("runs") / "simclr"
    config = small_config(small_store, cluster__workers=1)
    save(train(0, 1, config, 0, 2).state, run, 2, config)
    return run


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let each run end with its initial weights; its validation is the better the nearer its rate is to 0.001."""
    runs = []

    def launch(config: ResolvedConfig, run: RunDirectory, *_: object) -> dict[str, Any]:
        step = config.plan().total_steps
        score = 1 - abs(config.optim.lr - 0.001) if config.probe else None
        Checkpoints(run.path).save(step, config, State(config.initial_method(read(config)).state_dict(), {}), score)
        runs.append(run.path.name)
        return {"step": step}

    monkeypatch.setattr("cluster.pipelines.completion.launch", launch)
    monkeypatch.setattr("cluster.launch.ray_with_capacity", lambda _: contextlib.nullcontext(False))
    return runs
