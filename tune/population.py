"""Population-based training (arXiv 1711.09846): a member that falls behind continues from a better member's checkpoint.

The member takes over weights and optimizer and changes its settings. Ray's scheduler decides who continues from whom;
this module hands the checkpoints over. A member that continues from another's checkpoint gets a new run directory,
whose origin.json says where it came from.
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
from cluster.run_status import OUTCOME
from ssl_dist.checkpoint import Checkpoints, verify
from ssl_dist.config import ResolvedConfig
from ssl_dist.reading import exact
from tune import trial_files
from tune.space import Sample
from tune.sweep import Sweep

_DONOR = "donor.json"  # lies beside a checkpoint that is handed over, and names the run it comes from


class PopulationScheduler(PopulationBasedTraining):  # type: ignore[misc]  # Ray has no types here
    """Ray's scheduler, which compares members by images seen.

    Ray draws from Python's global ``random``, so two sweeps with one seed make different choices.
    """

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
            perturbation_interval=math.floor(exact(sweep.probe_every_epochs) * sweep.num_images),
            hyperparam_mutations={"sample": moves},
            custom_explore_fn=clipped,
            log_config=False,
        )

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if result["last"]:  # no member continues from the end of another
            return str(self.CONTINUE)
        return str(super().on_trial_result(tune_controller, trial, result))


def member_samples(sweep: Sweep, directory: Path) -> list[Sample]:
    """Return every member's settings as they are now: those of its current run, or those that it begins with."""
    runs = _current_runs(directory)
    begin = {f"{number:05d}": sample for number, sample in enumerate(sweep.known_samples)}
    return [sweep.sample_of(trial_files.config_of(runs[key])) if key in runs else begin[key] for key in begin]


def _member_key(trial: str) -> str:
    """Return the part of Ray Tune's trial name that is the same after every start: the number of the member."""
    return trial.rpartition("_")[2]


def _current_runs(directory: Path) -> dict[str, Path]:
    """Map each member that has begun to the run in which it trains: its newest one that was not replaced."""
    runs = {}
    for run, _ in trial_files.begun_trials(directory):
        origin = trial_files.read_origin(run)
        if origin and (trial_files.read_outcome(run) or {}).get("status") != "replaced":
            runs[_member_key(origin["trial"])] = run
    return runs


def claim_run(
    sweep: Sweep, config: ResolvedConfig, directory: Path, member: str, handed: Checkpoint | None
) -> RunDirectory:
    """Lock the run directory in which a member trains next, with the checkpoint in it that it continues from.

    Args:
        member: Ray Tune's name of the member.
        handed: a checkpoint from Ray Tune: the member's own last one, or that of the member it continues from. None
            after a start of Ray Tune: the member continues in its current run.
    """
    if handed is None:
        path = _current_runs(directory).get(_member_key(member), trial_files.path_of(directory, config))
        run, origin = _claim_own(path, config)
    else:
        with handed.as_directory() as folder:
            donor = json.loads((Path(folder) / _DONOR).read_text(encoding="utf-8"))
            path = directory / "trials" / donor["run"]
            if donor["member"] == member:
                run, origin = _claim_own(path, config)
            else:
                source = Path(folder) / donor["checkpoint"]  # Tune may have put it into the folder of an older one
                origin = {"run": donor["run"], "step": verify(source).step}
                text = json.dumps([config.fingerprint(), member, *origin.values()])
                path = path.with_name(hashlib.sha256(text.encode()).hexdigest()[:12])
                run = RunDirectory.claim(path, config)
                if Checkpoints(path).newest() is None:
                    Checkpoints(path).adopt(source)
    trial_files.write_origin(path, member, origin["run"], origin["step"])
    _close_other_runs(sweep, directory, member, path)
    return run


def _claim_own(path: Path, config: ResolvedConfig) -> tuple[RunDirectory, dict[str, Any]]:
    """Claim a run that its member continues, and read where it came from."""
    run = RunDirectory.claim(path, config)
    outcome = trial_files.read_outcome(path)
    if outcome and outcome["status"] == "replaced":  # a kill came before the run that should replace it
        (path / OUTCOME).unlink()
    return run, trial_files.read_origin(path) or {"run": "", "step": 0}


def _close_other_runs(sweep: Sweep, directory: Path, member: str, current: Path) -> None:
    """Record that the member's earlier runs were replaced by its current one."""
    for run, config in trial_files.begun_trials(directory):
        origin = trial_files.read_origin(run)
        mine = origin is not None and _member_key(origin["trial"]) == _member_key(member)
        if run != current and mine and trial_files.read_outcome(run) is None:
            trial_files.write_outcome(run, "replaced", trial_files.last_point(sweep, config, run))


@contextlib.contextmanager
def exported_checkpoint(run: Path, point: trial_files.Point, member: str) -> Iterator[Checkpoint | None]:
    """Give a run's checkpoint at a point to Ray Tune; None where it has been deleted already."""
    with tempfile.TemporaryDirectory(dir=run) as folder:
        source = Checkpoints(run).path(point.step)
        try:
            shutil.copytree(source, Path(folder) / source.name, copy_function=os.link)
        except (OSError, shutil.Error):
            yield None
            return
        donor = {"member": member, "run": run.name, "checkpoint": source.name}
        (Path(folder) / _DONOR).write_text(json.dumps(donor), encoding="utf-8")
        yield Checkpoint.from_directory(folder)
