"""One trial, as Ray Tune runs it: a pretraining by Ray Train, whose probe's values become Tune's reports."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cluster.connect import Background
from cluster.launch import ending, fit
from cluster.run_directory import RunDirectory
from ssl_dist.config import RunConfig
from ssl_dist.errors import Diverged
from tune.sweep import Sweep

OUTCOME = "outcome.json"
WORST = 0.0  # of every objective: a diverged trial's
_POLL_S = 0.5


class Point(NamedTuple):
    """The objective after ``images`` images (of the rung, whatever the batch's size)."""

    images: int
    objective: float


def trial(values: dict[str, Any], *, sweep: dict[str, Any], directory: str) -> None:
    """Run or go on with a trial, and report its points.

    Whatever was measured before a kill is reported again first: Tune's own memory may be older than the run's.
    """
    import ray.tune

    plan = Sweep.model_validate(sweep)
    config = plan.config(values.get("sample", values))
    run = RunDirectory.enter(path_of(Path(directory), config), config)
    workers = None if read_outcome(run.path) else fit(config, run, here=config.cluster.workers == 1)
    point: Point | None = None
    try:
        for point in _points(plan, config, run, workers):
            ray.tune.report({**point._asdict(), "run": run.path.name})
    except SystemExit:  # the scheduler ends the trial, in the middle of a report
        if point and not read_outcome(run.path):
            write_outcome(run.path, {"status": "stopped", **point._asdict()})
        raise
    finally:
        run.ask_to_stop()
        if workers:
            workers.join()
        run.leave()


def path_of(directory: Path, config: RunConfig) -> Path:
    """A trial's run directory: two trials that differ in anything have two."""
    return directory / "trials" / config.fingerprint()


def _points(plan: Sweep, config: RunConfig, run: RunDirectory, workers: Background | None) -> Iterator[Point]:
    """Points as they come; the last one only once the run has ended and its outcome is written, for the scheduler may
    end the trial at any of them."""
    budget, last = plan.budget(config), 0
    if workers:
        while workers.is_alive():
            workers.join(timeout=_POLL_S)
            for point in read_points(plan, config, run.path):
                if last < point.images < budget:
                    last = point.images
                    yield point
        write_outcome(run.path, _outcome(plan, config, run, workers))
    outcome = read_outcome(run.path) or {}
    for point in read_points(plan, config, run.path):
        if last < point.images < outcome["images"]:
            yield point
    yield Point(outcome["images"], outcome["objective"])


def _outcome(plan: Sweep, config: RunConfig, run: RunDirectory, workers: Background) -> dict[str, Any]:
    """What became of the run.

    Raises:
        SslDistError: it failed, by its own fault or the cluster's.
    """
    points = read_points(plan, config, run.path)
    error = ending(workers, run)
    if isinstance(error, Diverged):
        seen = points[-1].images if points else 0
        return {"status": "diverged", "images": seen + 1, "objective": WORST, "reason": str(error)}
    if error:
        raise error
    return {"status": "finished", **points[-1]._asdict()}


def read_points(plan: Sweep, config: RunConfig, run: Path) -> list[Point]:
    """The objective's values in a run's metrics so far, but that of the random weights."""
    assert config.probe, "trials have one"
    try:
        text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    steps = config.plan(plan.num_images)
    every = config.probe.every_epochs * steps.steps_per_epoch  # as Plan.is_time has it
    points = []
    for line in text.splitlines(keepends=True):
        if not line.endswith("\n"):
            break  # is being written
        values = json.loads(line)
        if config.probe.tag in values and values["step"]:
            ended = values["step"] == steps.total_steps
            rung = round(math.floor(values["step"] / every) * config.probe.every_epochs * plan.num_images)
            points.append(Point(plan.budget(config) if ended else rung, values[config.probe.tag]))
    return points


def read_outcome(run: Path) -> dict[str, Any] | None:
    """What became of a trial: ``status`` (finished, diverged, stopped by the scheduler, failed), ``images``,
    ``objective``; None while it has not ended."""
    try:
        outcome: dict[str, Any] = json.loads((run / OUTCOME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return outcome


def write_outcome(run: Path, outcome: dict[str, Any]) -> None:
    """Whole or not at all."""
    aside = run / f".{OUTCOME}.tmp"
    aside.write_text(json.dumps(outcome), encoding="utf-8")
    aside.replace(run / OUTCOME)
