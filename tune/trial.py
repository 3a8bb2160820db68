"""One trial of a sweep: a pretraining by Ray Train, whose probe's values are reported to Ray Tune."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.connect import Background
from cluster.launch import start_workers, training_error
from cluster.run_directory import RunDirectory
from ssl_dist.checkpoint import Checkpoints
from ssl_dist.config import ResolvedConfig
from ssl_dist.errors import Diverged
from tune.sweep import Sweep
from tune.trial_files import NO_POINT, Point, last_point, path_of, read_outcome, read_points, write_outcome

_POLL_S = 0.5


def run_trial(values: dict[str, Any], *, sweep: dict[str, Any], directory: str) -> None:
    """Start or resume a trial, and report its points; Ray Tune calls this.

    Points from before a kill are reported again first, because Ray Tune has no memory of them.

    Args:
        values: the trial's settings, as Ray Tune's search or scheduler chose them.
        sweep: the sweep as plain values.
        directory: the sweep's directory.
    """
    plan = Sweep.model_validate(sweep)
    config = plan.config(plan.sample_from(values))
    run = _claim(plan, config, Path(directory))
    workers = None if read_outcome(run.path) else start_workers(config, run, here=config.cluster.workers.max == 1)
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
        run.release()


def _claim(plan: Sweep, config: ResolvedConfig, directory: Path) -> RunDirectory:
    if plan.scheduler != "pbt":
        return RunDirectory.claim(path_of(directory, config), config)
    import ray.tune

    from tune import population

    member = ray.tune.get_context().get_trial_id()
    return population.claim_run(plan, config, directory, member, ray.tune.get_checkpoint())


def _report(plan: Sweep, config: ResolvedConfig, run: RunDirectory, point: Point) -> None:
    import ray.tune

    values = {**point._asdict(), "run": run.path.name, "last": point.images >= plan.budget_images(config)}
    if plan.scheduler != "pbt":
        ray.tune.report(values)
        return
    from tune import population

    member = ray.tune.get_context().get_trial_id()
    with population.exported_checkpoint(run.path, point, member) as handed:
        ray.tune.report(values, checkpoint=handed)


def _points(plan: Sweep, config: ResolvedConfig, run: RunDirectory, workers: Background | None) -> Iterator[Point]:
    """Yield points as they are measured.

    The last one comes only once the run has ended and its outcome is written, because Ray Tune may end the trial at any
    of them.
    """
    budget, reported = plan.budget_images(config), 0
    if plan.scheduler == "pbt":  # a member is compared with the others where it is now, not where it was once
        reported = max([point.images for point in read_points(plan, config, run.path)[:-1]], default=0)
    if workers:
        while workers.is_alive():
            workers.join(timeout=_POLL_S)
            run.give_sign_of_life()
            for point in read_points(plan, config, run.path):
                if reported < point.images < budget and _is_saved(run.path, point):
                    reported = point.images
                    yield point
        _write_outcome(plan, config, run, workers)
    outcome = read_outcome(run.path) or {}
    end = Point(outcome["images"], outcome["objective"], outcome["step"])
    for point in read_points(plan, config, run.path):
        if reported < point.images < end.images:
            yield point
    yield end


def _is_saved(run: Path, point: Point) -> bool:
    """Return whether the checkpoint of a point, which is written after the point, is there."""
    saved = Checkpoints(run)
    return any(path >= saved.path(point.step) for path in saved.list())


def _write_outcome(plan: Sweep, config: ResolvedConfig, run: RunDirectory, workers: Background) -> None:
    """Write how the run ended.

    Raises:
        SslDistError: the run failed.
    """
    last = last_point(plan, config, run.path)
    error = training_error(workers, run)
    if isinstance(error, Diverged):
        missed = min(plan.rung_images(plan.num_rungs(last.images) + 1), plan.budget_images(config))
        write_outcome(run.path, "diverged", NO_POINT._replace(images=missed, step=last.step), str(error))
    elif error:
        raise error
    else:
        write_outcome(run.path, "finished" if last.images >= plan.budget_images(config) else "stopped", last)
