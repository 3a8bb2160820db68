"""Early stopping of trials: Ray's stopping rules, applied in the order of the trials' numbers.

Asynchronous successive halving compares a trial with those that reached its rung before it: which trials continue then
depends on which happened to be faster, and on every restart. Here "before" means a lower number. A trial at a rung
trains on until every trial of a lower number has passed that rung or ended; then it is judged. So the verdicts
depend on the trials' curves alone: they are the same for any number of trials at once, and after any kill.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ray.tune import schedulers

from cluster.run_directory import RunDirectory
from ssl_dist.reading import exact
from tune.sweep import Sweep
from tune.trial_files import Curve, Point, begun_trials, path_of, read_curve, read_outcome


class StoppingScheduler(schedulers.FIFOScheduler):  # type: ignore[misc]  # Ray has no types here
    """A scheduler for Ray Tune that stops the trials named by ``stopping_points``."""

    def __init__(self, sweep: Sweep, directory: Path) -> None:
        super().__init__()
        self._sweep, self._directory = sweep, directory
        self._known = [path_of(directory, sweep.config(sample)) for sample in sweep.known_samples]

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        stopped = self.stopped()
        for run in stopped:
            if read_outcome(run) is None:  # it trained on while a trial before it was slower
                RunDirectory(run).ask_to_stop()
        return str(self.STOP if result["run"] in {run.name for run in stopped} else self.CONTINUE)

    def stopped(self) -> dict[Path, Point]:
        """Return the run directories of the trials to stop, and at which point each one stops."""
        # Optuna's samples are not known beforehand; its trials are numbered in the order in which they began
        runs = self._known or [run for run, _ in begun_trials(self._directory)]
        found = stopping_points(self._sweep, [read_curve(self._sweep, run) for run in runs])
        return {runs[number]: point for number, point in found.items()}


class _Trial(NamedTuple):
    """A trial as Ray's schedulers see it."""

    trial_id: str


class _Controller:
    """The part of Ray Tune's controller that its schedulers ask; no trial waits for a place."""

    def get_live_trials(self) -> list[Any]:
        return []


def stopping_points(sweep: Sweep, curves: Sequence[Curve]) -> dict[int, Point]:
    """Return the numbers of the trials that the scheduler stops, and the point at which it stops each.

    New points and new curves at the end change no earlier verdict. A trial is never stopped at its own last point, but
    other trials are compared with that point.
    """
    scheduler, controller = _ray_scheduler(sweep), _Controller()
    trials = [_Trial(str(number)) for number in range(len(curves))]
    for trial in trials:
        scheduler.on_trial_add(controller, trial)
    found: dict[int, Point] = {}
    judged = len(curves)  # only trials below this number can be judged
    for images in sorted({point.images for curve in curves for point in curve.points}):
        for number, curve in enumerate(curves[:judged]):
            if number in found:
                continue
            point = next((point for point in curve.points if point.images >= images), None)
            if point is None and not curve.is_complete:
                judged = number
                break
            if point is None or point.images > images:
                continue
            result = {"images": images, "objective": point.objective}
            verdict = scheduler.on_trial_result(controller, trials[number], result)
            if verdict == schedulers.TrialScheduler.STOP and images < curve.final_images:
                found[number] = point
    return found


def _ray_scheduler(sweep: Sweep) -> Any:
    """Return Ray's scheduler, whose first rung is where the objective is measured first."""
    # rounded down: no rung may lie above the measurement that is meant for it
    first = math.floor(exact(sweep.probe_every_epochs) * sweep.num_images)
    common: dict[str, Any] = {"time_attr": "images", "metric": "objective", "mode": "max", "grace_period": first}
    if sweep.scheduler == "asha":
        max_t = max(math.ceil(exact(sweep.longest_epochs) * sweep.num_images), first + 1)
        return schedulers.ASHAScheduler(max_t=max_t, reduction_factor=sweep.reduction, stop_last_trials=False, **common)
    if sweep.scheduler == "median":
        return schedulers.MedianStoppingRule(min_samples_required=3, **common)
    raise ValueError(f"{sweep.scheduler} stops no trial by its curve")
