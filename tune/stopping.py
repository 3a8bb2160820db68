"""By what rule trials are stopped: Ray's, told of results in the order of the trials' numbers, not of the clock.

Asynchronous successive halving compares a trial with those that reached its rung before it: which trials go on depends
on which happened to be faster, and on every restart. Here "before" is by number: a trial at a rung is judged once every
trial of a lower number has passed that rung or ended, and trains on until then. What is stopped is then a function of
the trials' curves alone: the same for any number of trials at once, and after any kill.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ray.tune import schedulers
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from cluster.run_directory import RunDirectory
from tune.sweep import Sweep
from tune.trial_files import Curve, Point, begun_trials, curve_of, path_of, read_outcome


class ByNumber(FIFOScheduler):  # type: ignore[misc]  # Ray has no types here
    """For Ray Tune: stops the trials that ``stops`` says."""

    def __init__(self, sweep: Sweep, directory: Path) -> None:
        super().__init__()
        self._sweep, self._directory = sweep, directory
        self._known = [path_of(directory, sweep.config(sample)) for sample in sweep.known_samples]

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        stopped = self.stopped()
        for run in stopped:
            if read_outcome(run) is None:  # judged late, for one before it was slower: it trains on
                RunDirectory(run).ask_to_stop()
        return str(self.STOP if result["run"] in {run.name for run in stopped} else self.CONTINUE)

    def stopped(self) -> dict[Path, Point]:
        """Run directories of the trials that are to be stopped, and at which point."""
        # Optuna's samples are not known before; its trials are numbered as they began
        runs = self._known or [run for run, _ in begun_trials(self._directory)]
        found = stops(self._sweep, [curve_of(self._sweep, run) for run in runs])
        return {runs[number]: point for number, point in found.items()}


class _Trial(NamedTuple):
    """As Ray's schedulers know one."""

    trial_id: str


class _Controller:
    """Of Ray Tune, as far as Ray's schedulers ask: no trial waits for a place."""

    def get_live_trials(self) -> list[Any]:
        return []


def stops(sweep: Sweep, curves: Sequence[Curve]) -> dict[int, Point]:
    """Which trials the rule stops, by number, and at which point, as far as the curves tell.

    A curve that grows, or one more at the end, changes nothing of what was said before. The point at which a trial ends
    by itself does not stop it, but counts for others.
    """
    rule, controller = _rule(sweep), _Controller()
    trials = [_Trial(str(number)) for number in range(len(curves))]
    for trial in trials:
        rule.on_trial_add(controller, trial)
    found: dict[int, Point] = {}
    judged = len(curves)  # trials below this number can be
    for images in sorted({point.images for curve in curves for point in curve.points}):
        for number, curve in enumerate(curves[:judged]):
            if number in found:
                continue
            point = next((point for point in curve.points if point.images >= images), None)
            if point is None and not curve.ended:
                judged = number
                break
            if point is None or point.images > images:
                continue
            told = {"images": images, "objective": point.objective}
            verdict = rule.on_trial_result(controller, trials[number], told)
            if verdict == TrialScheduler.STOP and images < curve.end:
                found[number] = point
    return found


def _rule(sweep: Sweep) -> Any:
    """Ray's, with its first rung where the objective is measured first."""
    first = math.floor(sweep.every_epochs * sweep.num_images)  # neither it nor its multiples lie above a point
    common: dict[str, Any] = {"time_attr": "images", "metric": "objective", "mode": "max", "grace_period": first}
    if sweep.scheduler == "asha":
        longest = max(math.ceil(sweep.longest_epochs * sweep.num_images), first + 1)
        return schedulers.ASHAScheduler(
            max_t=longest, reduction_factor=sweep.reduction, stop_last_trials=False, **common
        )
    if sweep.scheduler == "median":
        return schedulers.MedianStoppingRule(min_samples_required=3, **common)
    raise ValueError(f"{sweep.scheduler} stops no trial by its curve")
