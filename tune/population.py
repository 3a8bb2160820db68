"""Population-based training (arXiv 1711.09846): a member that falls behind goes on from a better one's checkpoint,
optimizer included, with its settings moved. Ray's scheduler decides; here are the checkpoints that it hands over.

A member that goes on from another's checkpoint gets a run directory of its own, with origin.json in it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ray.tune import Checkpoint
from ray.tune.schedulers import PopulationBasedTraining

from cluster.run_directory import RunDirectory
from ssl_dist.checkpoint import Checkpoints, verify
from ssl_dist.config import RunConfig
from tune.sweep import Sweep
from tune.trial_files import (
    NO_POINT,
    OUTCOME,
    Point,
    begun_trials,
    path_of,
    read_origin,
    read_outcome,
    read_points,
    write_origin,
    write_outcome,
)

_GIVER = "giver.json"  # in what is handed over: whose it is


class Population(PopulationBasedTraining):  # type: ignore[misc]  # Ray has no types here
    """Ray's, over images seen. Ray draws by ``random``: its choices differ from time to time."""

    def __init__(self, sweep: Sweep) -> None:
        random = np.random.default_rng()
        moves = {
            key: list(domain.values) if domain.values is not None else functools.partial(domain.draw, random)
            for key, domain in sweep.space.items()
        }

        def clipped(config: dict[str, Any]) -> dict[str, Any]:
            sample = {key: sweep.space[key].clip(value) for key, value in config["sample"].items()}
            return {**config, "sample": sample}

        super().__init__(
            time_attr="images",
            perturbation_interval=math.floor(sweep.every_epochs * sweep.num_images),
            hyperparam_mutations={"sample": moves},
            custom_explore_fn=clipped,
            log_config=False,
        )

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if result["last"]:  # nobody goes on from the end
            return str(self.CONTINUE)
        return str(super().on_trial_result(tune_controller, trial, result))


def enter(sweep: Sweep, config: RunConfig, directory: Path, member: str, handed: Checkpoint | None) -> RunDirectory:
    """The run directory in which a member goes on, with a checkpoint in it where it does not start by itself.

    Args:
        member: Tune's name of it.
        handed: what Tune gives it: its own last checkpoint, or that of the member whose place it takes.
    """
    if handed is None:
        run = RunDirectory.enter(path_of(directory, config), config)
        write_origin(run.path, member, "", 0)
        return run
    with handed.as_directory() as folder:
        giver = json.loads((Path(folder) / _GIVER).read_text(encoding="utf-8"))
        if giver["member"] == member:
            run = RunDirectory.enter(directory / "trials" / giver["run"], config)
            if (read_outcome(run.path) or {}).get("status") == "replaced":  # Tune's memory is from before that
                (run.path / OUTCOME).unlink()
            return run
        source = Path(folder) / giver["checkpoint"]  # Tune may have put it into the folder of an older one
        step = verify(source).step
        text = json.dumps([config.fingerprint(), member, giver["run"], step])
        run = RunDirectory.enter(directory / "trials" / hashlib.sha256(text.encode()).hexdigest()[:12], config)
        if Checkpoints(run.path).newest() is None:
            Checkpoints(run.path).adopt(source)
    _replace(sweep, directory, member, run.path)
    write_origin(run.path, member, giver["run"], step)
    return run


def _replace(sweep: Sweep, directory: Path, member: str, by: Path) -> None:
    """Close what the member ran before."""
    for run, config in begun_trials(directory):
        origin = read_origin(run)
        if run != by and origin and origin["trial"] == member and read_outcome(run) is None:
            points = read_points(sweep, config, run)
            write_outcome(run, "replaced", points[-1] if points else NO_POINT)


@contextlib.contextmanager
def handed_over(run: Path, point: Point, member: str) -> Iterator[Checkpoint | None]:
    """A run's checkpoint at a point, for Tune; None where it has been deleted already."""
    with tempfile.TemporaryDirectory(dir=run) as folder:
        source = Checkpoints(run).path(point.step)
        try:
            shutil.copytree(source, Path(folder) / source.name, copy_function=os.link)
        except (OSError, shutil.Error):
            yield None
            return
        giver = {"member": member, "run": run.name, "checkpoint": source.name}
        (Path(folder) / _GIVER).write_text(json.dumps(giver), encoding="utf-8")
        yield Checkpoint.from_directory(folder)
