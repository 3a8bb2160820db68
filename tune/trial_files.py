"""The files of a trial: where its run directory lies, which points were measured, how it ended.

These files are the only memory of a sweep: a killed sweep resumes from what its trials have written, and Ray Tune's own
state is never read again.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from cluster.run_status import OUTCOME
from ssl_dist.config import ResolvedConfig
from ssl_dist.errors import ConfigError
from ssl_dist.files import write_text
from ssl_dist.training.metrics import MetricsReader
from tune.sweep import Sweep

WORST = 0.0  # the lowest value of every objective; a diverged trial gets it


class Point(NamedTuple):
    """The objective, measured after ``step`` steps; ``images`` is the rung's number of images seen."""

    images: int
    objective: float
    step: int


NO_POINT = Point(0, WORST, 0)


class Curve(NamedTuple):
    """A trial's points so far.

    Attributes:
        is_complete: no point will follow.
        final_images: the number of images at which the trial ends if no scheduler stops it.
    """

    points: list[Point]
    is_complete: bool
    final_images: float


def path_of(directory: Path, config: ResolvedConfig) -> Path:
    """Return a trial's run directory: two trials that differ in any setting have two."""
    return directory / "trials" / config.fingerprint()


def begun_trials(directory: Path) -> list[tuple[Path, ResolvedConfig]]:
    """Return run directories and configs of the trials that have begun, oldest first.

    One whose config was cut by a crash of the machine is as one that has not begun, since it can be begun again.
    """
    runs = sorted((directory / "trials").glob("*/config.json"), key=lambda file: (file.stat().st_ctime, file))
    return [(file.parent, config) for file in runs if (config := _whole_config_of(file.parent))]


def all_ended(sweep: Sweep, directory: Path) -> bool:
    """Return whether all trials of a sweep have ended; of a population it is not known without Ray Tune."""
    ended = sum(read_outcome(run) is not None for run, _ in begun_trials(directory))
    return sweep.scheduler != "pbt" and ended >= sweep.num_trials


def _whole_config_of(run: Path) -> ResolvedConfig | None:
    try:
        return config_of(run)
    except (ValueError, ConfigError):
        return None


@functools.cache
def config_of(run: Path) -> ResolvedConfig:
    """Read the config of a trial that has begun; it never changes, because it names the run directory."""
    file = run / "config.json"
    return ResolvedConfig.from_tree(json.loads(file.read_text(encoding="utf-8")), str(file))


def read_curve(sweep: Sweep, run: Path) -> Curve:
    """Read a trial's curve; it has no points where the trial has not begun."""
    if not (run / "config.json").exists():
        return Curve([], is_complete=False, final_images=math.inf)
    config, outcome = config_of(run), read_outcome(run)
    points = read_points(sweep, config, run)
    final_images = sweep.budget_images(config)
    if outcome and outcome["status"] == "diverged":  # it counts as the worst at the rung that it did not reach
        final_images = outcome["images"]
        reached = (point for point in points if point.images < final_images)
        points = [*reached, Point(final_images, WORST, outcome["step"])]
    return Curve(points, outcome is not None, final_images)


def read_points(sweep: Sweep, config: ResolvedConfig, run: Path) -> list[Point]:
    """Read the objective's values from a run's metrics, without that of the random weights."""
    assert config.probe, "every trial has a probe"
    steps = config.plan()
    points = []
    for values in MetricsReader(run).read_new():
        if config.probe.tag in values and values["step"]:
            rungs = steps.periods(values["step"], config.probe.every_epochs)
            is_last = values["step"] == steps.total_steps
            images = sweep.budget_images(config) if is_last else sweep.rung_images(rungs)
            points.append(Point(images, values[config.probe.tag], values["step"]))
    return points


def last_point(sweep: Sweep, config: ResolvedConfig, run: Path) -> Point:
    """Read the last of ``read_points``, or ``NO_POINT`` if there is none."""
    return [NO_POINT, *read_points(sweep, config, run)][-1]


def images_seen(run: Path, config: ResolvedConfig) -> int:
    """Return the number of images that a trial has trained on so far, by its metrics."""
    origin = read_origin(run)
    before = origin["step"] if origin else 0
    return max([values["step"] - before for values in MetricsReader(run).read_new()], default=0) * config.batch.size


def read_outcome(run: Path) -> dict[str, Any] | None:
    """Read how a trial ended; None while it has not ended.

    Returns:
        ``status`` (finished, diverged, stopped by the scheduler, replaced in a population, or failed), ``reason``, and
        ``images``, ``objective`` and ``step`` of its last point.
    """
    return _read(run / OUTCOME)


def write_outcome(run: Path, status: str, point: Point, reason: str = "") -> None:
    """Write how a trial ended; a kill leaves the old file or the new one."""
    write_text(run / OUTCOME, json.dumps({"status": status, **point._asdict(), "reason": reason}))


def read_origin(run: Path) -> dict[str, Any] | None:
    """Read which member of a population has this run; None in other sweeps.

    Returns:
        ``trial``, Ray Tune's name of the member, and ``run`` and ``step``, the checkpoint from which it continued
        (empty and 0 where it started from initial weights).
    """
    return _read(run / "origin.json")


def write_origin(run: Path, trial: str, parent: str, step: int) -> None:
    """Write which member has this run; a kill leaves the old file or the new one."""
    write_text(run / "origin.json", json.dumps({"trial": trial, "run": parent, "step": step}))


def _read(file: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # a crash of the machine may have cut it
        return None
    return found
