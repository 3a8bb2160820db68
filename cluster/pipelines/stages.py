"""What commands of several runs share: a run that the same command finds again, and labels from one for the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from cluster.launch import launch
from cluster.run_directory import RunDirectory, differences
from ssl_dist.checkpoint import Checkpoints
from ssl_dist.config import RunConfig
from ssl_dist.data.sample_plan import open_data
from ssl_dist.errors import ClusterError, ConfigError, RunError
from ssl_dist.files import replacing
from ssl_dist.settings import DataConfig
from ssl_dist.uris import join_uri

AGAIN = "the same command again"


def complete(directory: Path, config: RunConfig, console: Console) -> dict[str, Any]:
    """The run of this config in a directory: begun, gone on with, or found finished.

    Args:
        config: its store was opened before.

    Returns:
        ``step`` and, unless it was finished before, the last metrics.

    Raises:
        ConfigError: another run is there.
        RunError: it was stopped before its last step.
        Interrupted: by Ctrl-C.
    """
    assert config.data.num_samples, "the store was opened before"
    total = config.plan(config.data.num_samples).total_steps
    if config.checkpoint.mirror:  # other commands have runs of this name
        place = join_uri(config.checkpoint.mirror, directory.parent.name)
        config = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"mirror": place})})
    if begun(directory):
        run, before = RunDirectory.reopen(directory)
    else:
        run, before = RunDirectory.create(directory, config), config
    try:
        if differing := differences(before, config):
            raise ConfigError(
                f"{directory} holds a run of other settings, {', '.join(differing)}: call with those that it began"
                " with, or choose another --run-dir"
            )
        run.update(config)
        found = Checkpoints(directory).newest()
        finished = found is not None and found.step == total
        where = f"{directory}: finished before" if finished else f"{directory}"
        console.print(where, markup=False, highlight=False, soft_wrap=True)
        if finished:
            return {"step": total}
        last = launch(config, run, console, AGAIN)
    except ClusterError:
        run.discard()
        raise
    finally:
        run.leave()
    if last["step"] < total:
        raise RunError(f"{directory} was stopped after {last['step']} of {total} steps: go on with {AGAIN}")
    return last


def expect_no_skip(data: DataConfig) -> None:
    """Refuse a store of which damaged images are left out: between two stages every image is looked at.

    Raises:
        ConfigError: that is asked for.
    """
    if data.damaged == "skip":
        raise ConfigError(
            "data.damaged=skip: this command looks at every image between its stages: set data.damaged=refuse, and"
            " build the store again if it is damaged"
        )


def begun(directory: Path) -> bool:
    """Is there a run?"""
    return (directory / "config.json").exists()


def with_data(config: RunConfig, **settings: Any) -> RunConfig:
    """The config with some settings of ``data`` replaced, and what is filled in of the store as it is with these.

    Raises:
        ConfigError: of a label file, see ``samples.labels_of``.
    """
    config = config.model_copy(update={"data": config.data.model_copy(update=settings)})
    return config.model_copy(update={"data": open_data(config)[1]})


def save_labels(labels: np.ndarray, file: Path) -> None:
    """Write a label file, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as aside, aside.open("wb") as content:
        np.save(content, labels)
