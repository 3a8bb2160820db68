"""One trial, as Ray Tune runs it: a pretraining by Ray Train, whose probe's values become Tune's reports."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.connect import Background
from cluster.launch import ending, fit
from cluster.run_directory import RunDirectory
from ssl_dist.checkpoint import Checkpoints
from ssl_dist.config import RunConfig
from ssl_dist.errors import Diverged
from tune.sweep import Sweep
from tune.trial_files import NO_POINT, Point, path_of, read_outcome, read_points, write_outcome

_POLL_S = 0.5


def trial(values: dict[str, Any], *, sweep: dict[str, Any], directory: str) -> None:
    """Run or go on with a trial, and report its points.

    Whatever was measured before a kill is reported again first: Tune's own memory may be older than the run's.
    """
    plan = Sweep.model_validate(sweep)
    config = plan.config(values.get("sample", values))
    run = _enter(plan, config, Path(directory))
    workers = None if read_outcome(run.path) else fit(config, run, here=config.cluster.workers.max == 1)
    point: Point | None = None
    try:
        for point in _points(plan, config, run, workers):
            _report(plan, config, run, point)
    except SystemExit:  # Tune ends the trial, in the middle of a report
        if point and plan.scheduler != "pbt" and not read_outcome(run.path):
            write_outcome(run.path, "stopped", point)
        raise
    finally:
        run.ask_to_stop()
        if workers:
            workers.join()
        run.leave()


def _enter(plan: Sweep, config: RunConfig, directory: Path) -> RunDirectory:
    if plan.scheduler != "pbt":
        return RunDirectory.enter(path_of(directory, config), config)
    import ray.tune

    from tune import population

    member = ray.tune.get_context().get_trial_id()
    return population.enter(plan, config, directory, member, ray.tune.get_checkpoint())


def _report(plan: Sweep, config: RunConfig, run: RunDirectory, point: Point) -> None:
    import ray.tune

    values = {**point._asdict(), "run": run.path.name, "last": point.images >= plan.budget(config)}
    with contextlib.ExitStack() as stack:
        handed = None
        if plan.scheduler == "pbt":
            from tune import population

            member = ray.tune.get_context().get_trial_id()
            handed = stack.enter_context(population.handed_over(run.path, point, member))
        ray.tune.report(values, checkpoint=handed)


def _points(plan: Sweep, config: RunConfig, run: RunDirectory, workers: Background | None) -> Iterator[Point]:
    """Points as they come; the last one only once the run has ended and its outcome is written, for Tune may end the
    trial at any of them."""
    budget, last = plan.budget(config), 0
    if workers:
        while workers.is_alive():
            workers.join(timeout=_POLL_S)
            for point in read_points(plan, config, run.path):
                if last < point.images < budget and _is_saved(run.path, point):
                    last = point.images
                    yield point
        _conclude(plan, config, run, workers)
    outcome = read_outcome(run.path) or {}
    end = Point(outcome["images"], outcome["objective"], outcome["step"])
    for point in read_points(plan, config, run.path):
        if last < point.images < end.images:
            yield point
    yield end


def _is_saved(run: Path, point: Point) -> bool:
    """Has the checkpoint of a point, which is written after it, been written?"""
    saved = Checkpoints(run)
    return any(path >= saved.path(point.step) for path in saved.list())


def _conclude(plan: Sweep, config: RunConfig, run: RunDirectory, workers: Background) -> None:
    """Write what became of the run.

    Raises:
        SslDistError: it failed, by its own fault or the cluster's.
    """
    points = read_points(plan, config, run.path)
    last = points[-1] if points else NO_POINT
    error = ending(workers, run)
    if isinstance(error, Diverged):
        missed = min(plan.rung(plan.num_rungs(last.images) + 1), plan.budget(config))
        write_outcome(run.path, "diverged", NO_POINT._replace(images=missed, step=last.step), str(error))
    elif error:
        raise error
    else:
        write_outcome(run.path, "finished" if last.images >= plan.budget(config) else "stopped", last)
