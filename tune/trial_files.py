"""What a trial leaves on disk, from which everything about it is read: where it lies, what was measured, how it ended.

Ray Tune's own memory is only used to start trials again: it may be older than their run directories.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from ssl_dist.config import RunConfig
from tune.sweep import Sweep

OUTCOME = "outcome.json"
WORST = 0.0  # of every objective: a diverged trial's


class Point(NamedTuple):
    """The objective after ``images`` images (of the rung, whatever the batch's size), measured after ``step`` steps."""

    images: int
    objective: float
    step: int


NO_POINT = Point(0, WORST, 0)


class Curve(NamedTuple):
    """What is known of a trial: its points so far, whether more may come, and the images at which it ends by itself."""

    points: list[Point]
    ended: bool
    end: float


def path_of(directory: Path, config: RunConfig) -> Path:
    """A trial's run directory: two trials that differ in anything have two."""
    return directory / "trials" / config.fingerprint()


def begun_trials(directory: Path) -> list[tuple[Path, RunConfig]]:
    """Run directories and configs of the trials that have begun, oldest first."""
    runs = sorted((directory / "trials").glob("*/config.json"), key=lambda file: (file.stat().st_ctime, file))
    return [(file.parent, config_of(file.parent)) for file in runs]


@functools.cache
def config_of(run: Path) -> RunConfig:
    """Of a trial that has begun; it never changes, for its directory is named by it."""
    file = run / "config.json"
    return RunConfig.from_tree(json.loads(file.read_text(encoding="utf-8")), str(file))


def curve_of(sweep: Sweep, run: Path) -> Curve:
    """A trial's, also of one that has not begun."""
    if not (run / "config.json").exists():
        return Curve([], ended=False, end=math.inf)
    config, outcome = config_of(run), read_outcome(run)
    points = read_points(sweep, config, run)
    end = sweep.budget(config)
    if outcome and outcome["status"] == "diverged":  # the worst at the rung that it did not reach
        end = outcome["images"]
        points = [*(point for point in points if point.images < end), Point(end, WORST, outcome["step"])]
    return Curve(points, outcome is not None, end)


def read_points(sweep: Sweep, config: RunConfig, run: Path) -> list[Point]:
    """The objective's values in a run's metrics so far, but that of the random weights."""
    assert config.probe, "trials have one"
    steps = config.plan(sweep.num_images)
    every = config.probe.every_epochs * steps.steps_per_epoch  # as Plan.is_time has it
    points = []
    for values in _metrics(run):
        if config.probe.tag in values and values["step"]:
            rungs = math.floor(values["step"] / every)
            ended = values["step"] == steps.total_steps
            images = sweep.budget(config) if ended else sweep.rung(rungs)
            points.append(Point(images, values[config.probe.tag], values["step"]))
    return points


def images_seen(run: Path, config: RunConfig) -> int:
    """By a trial so far, as its metrics tell."""
    origin = read_origin(run)
    before = origin["step"] if origin else 0
    return max([values["step"] - before for values in _metrics(run)], default=0) * config.batch.size


def _metrics(run: Path) -> list[dict[str, Any]]:
    try:
        text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]  # else being written


def read_outcome(run: Path) -> dict[str, Any] | None:
    """How a trial ended: ``status`` (finished, diverged, stopped by the scheduler, replaced in a population, failed),
    and ``images``, ``objective``, ``step`` of its last point; None while it has not ended."""
    return _read(run / OUTCOME)


def write_outcome(run: Path, status: str, point: Point, reason: str = "") -> None:
    """Whole or not at all."""
    _write(run / OUTCOME, {"status": status, **point._asdict(), "reason": reason})


def read_origin(run: Path) -> dict[str, Any] | None:
    """In a population: ``trial``, Tune's name of the member; ``run``, from whose checkpoint after ``step`` steps this
    one went on (empty and 0 where it started by itself). None in other sweeps."""
    return _read(run / "origin.json")


def write_origin(run: Path, trial: str, parent: str, step: int) -> None:
    """Whole or not at all."""
    _write(run / "origin.json", {"trial": trial, "run": parent, "step": step})


def _read(file: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found


def _write(file: Path, content: dict[str, Any]) -> None:
    aside = file.with_name(f".{file.name}.tmp")
    aside.write_text(json.dumps(content), encoding="utf-8")
    aside.replace(file)
