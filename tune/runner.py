"""Drive a sweep: Ray Tune in a thread beside, the bar, and everything on disk for the next start."""

from __future__ import annotations

import logging
import os
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cluster.connect import Background, connected, last_line, resources, room
from ssl_dist.errors import ConfigError, Interrupted, SslDistError
from tune.sweep import Sweep
from tune.trial import trial
from tune.trial_files import (
    NO_POINT,
    begun_trials,
    images_seen,
    path_of,
    read_origin,
    read_outcome,
    read_points,
    write_outcome,
)

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # trials write their own metrics
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "5",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "120",  # to end a step and write a checkpoint
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}
_POLL_S = 2.0
_DRIVER_CPUS = 0.01  # of a trial of several workers: its driver only waits, and they have the accelerators
_RETRIES = 2  # of a trial whose driver's node dies; those of its workers are Ray Train's
_HANDED_OVER = 4  # checkpoints that Tune keeps of a member of a population


def drive(sweep: Sweep, directory: Path, console: Console, *, concurrency: int | None = None) -> None:
    """Run the sweep's trials, or go on with them, to the end or until Ctrl-C.

    Args:
        concurrency: trials at once; None: as many as the cluster has room for.

    Raises:
        ClusterError: Ray cannot be reached, or has no room for one trial.
        Interrupted: Ctrl-C; the message says how to go on.
        SslDistError: every trial failed; the first one's reason.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    cluster = sweep.recipe.cluster
    drivers = int(cluster.workers.max > 1)
    with connected(cluster, drivers=drivers):
        at_once = min(room(cluster, drivers) // cluster.workers.max, sweep.num_trials)
        at_once = min(at_once, concurrency or at_once)
        if sweep.scheduler == "pbt" and drivers and at_once < sweep.num_trials:
            raise ConfigError(
                f"--scheduler pbt with trials of {cluster.workers.max} workers runs all of them at once, and there is"
                f" room for {at_once}: set --samples {at_once}, or cluster.workers=1, whose trials take turns"
            )
        console.print(_announcement(sweep, at_once), highlight=False)
        fit = Background(lambda: _fit(sweep, directory, at_once))
        fit.start()
        try:
            _follow(fit, sweep, directory, console)
        except KeyboardInterrupt:
            raise Interrupted(
                f"stopped; every trial goes on from its newest checkpoint with: {resume_command(directory)}"
            ) from None
    if fit.error:
        raise fit.error
    _close(sweep, directory, fit.result)


def resume_command(directory: Path) -> str:
    """The line that goes on with a sweep."""
    return f"ssl-dist tune --resume {shlex.quote(str(directory))}"


def _fit(sweep: Sweep, directory: Path, at_once: int) -> dict[str, str]:
    """Tuner.fit; returns the failed trials' reasons by the names of their run directories."""
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    failures = {}
    for result in _tuner(sweep, directory, at_once).fit():
        if result.error and result.config:
            failures[_run_of(sweep, directory, result)] = last_line(result.error)
    return failures


def _run_of(sweep: Sweep, directory: Path, result: Any) -> str:
    """Name of the run in which a trial ended; in a population, the last that its member has begun."""
    for run, _ in begun_trials(directory):
        origin = read_origin(run)
        if origin and origin["trial"] in result.path and read_outcome(run) is None:
            return run.name
    return path_of(directory, sweep.config(result.config.get("sample", result.config))).name


def _tuner(sweep: Sweep, directory: Path, at_once: int) -> Any:
    import ray.tune

    settings = {"sweep": sweep.model_dump(mode="json"), "directory": str(directory.absolute())}
    cluster = sweep.recipe.cluster
    alone = cluster.workers.max == 1  # the worker is the trial's own process
    need = resources(cluster) if alone else {"CPU": _DRIVER_CPUS}
    trainable = ray.tune.with_resources(ray.tune.with_parameters(trial, **settings), need)
    state = directory.absolute() / "ray"
    if ray.tune.Tuner.can_restore(str(state)):
        return ray.tune.Tuner.restore(str(state), trainable=trainable, resume_unfinished=True, resume_errored=True)
    known = sweep.known_samples
    return ray.tune.Tuner(
        trainable,
        param_space={"sample": ray.tune.grid_search(known)} if known else None,
        tune_config=ray.tune.TuneConfig(
            metric="objective",
            mode="max",
            scheduler=_scheduler(sweep, directory.absolute()),
            search_alg=None if known else _optuna(sweep),
            num_samples=1 if known else sweep.samples,
            max_concurrent_trials=None if sweep.scheduler == "pbt" else at_once,  # members wait for each other
            # A process that has trained alone can train again. Of several workers it cannot: DeepSpeed keeps the first
            # process group.
            reuse_actors=alone,
        ),
        run_config=ray.tune.RunConfig(
            name=state.name,
            storage_path=str(state.parent),
            verbose=0,
            failure_config=ray.tune.FailureConfig(max_failures=_RETRIES),
            checkpoint_config=ray.tune.CheckpointConfig(num_to_keep=_HANDED_OVER),
        ),
    )


def _scheduler(sweep: Sweep, directory: Path) -> Any:
    from ray.tune.schedulers import FIFOScheduler

    if sweep.scheduler == "none":
        return FIFOScheduler()
    if sweep.scheduler == "pbt":
        from tune.population import Population

        return Population(sweep)
    from tune.stopping import ByNumber

    return ByNumber(sweep, directory)


def _optuna(sweep: Sweep) -> Any:
    from ray.tune.search.optuna import OptunaSearch

    space = {key: domain.distribution() for key, domain in sweep.space.items()}
    return OptunaSearch(space=space, metric="objective", mode="max", seed=sweep.seed)


def _announcement(sweep: Sweep, at_once: int) -> str:
    cluster = sweep.recipe.cluster
    text = f"{sweep.num_trials} trials, {at_once} at once, {cluster.workers.max} worker(s) each"
    configs = [sweep.config(sample) for sample in sweep.known_samples]
    if configs:
        most = sum(map(sweep.budget, configs))
        text += f"; at most {most:,} images"
        if sweep.scheduler == "asha":
            text += f", about {sum(map(sweep.expected, configs)):,.0f} as ASHA stops trials"
    return text


def _follow(fit: Background, sweep: Sweep, directory: Path, console: Console) -> None:
    """The bar over images, until the fit ends; what is to come is estimated anew as trials end."""
    columns = (TextColumn("images"), BarColumn(), TextColumn("{task.fields[numbers]}"))
    known = [sweep.expected(sweep.config(sample)) for sample in sweep.known_samples]
    usual = sum(known) / len(known) if known else sweep.expected(sweep.recipe)
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("images", total=None, numbers="starting")
        while fit.is_alive():
            fit.join(timeout=_POLL_S)
            seen, expected, ended, best = _standing(sweep, directory, usual)
            numbers = f"{seen:,.0f} of about {expected:,.0f}  {ended} of {sweep.num_trials} trials ended"
            if best is not None:
                numbers += f"  best {sweep.objective} {best:.4f}"
            bar.update(task, total=expected, completed=seen, numbers=numbers)


def _standing(sweep: Sweep, directory: Path, usual: float) -> tuple[float, float, int, float | None]:
    """(images seen, images expected in all, trials ended, best objective of the finished ones) from what is on disk;
    a trial that has not begun is expected to see the ``usual`` number."""
    seen = expected = 0.0
    objectives, begun, ended = [], 0, 0
    for run, config in begun_trials(directory):
        outcome, origin = read_outcome(run), read_origin(run)
        here, before = images_seen(run, config), origin["step"] * config.batch.size if origin else 0
        seen += here
        expected += here if outcome else max(here, sweep.expected(config) - before)
        begun += not before
        ended += outcome is not None and outcome["status"] != "replaced"
        if outcome and outcome["status"] == "finished":
            objectives.append(outcome["objective"])
    expected += usual * max(0, sweep.num_trials - begun)
    return seen, expected, ended, max(objectives, default=None)


def _close(sweep: Sweep, directory: Path, failures: dict[str, str]) -> None:
    """The sweep has ended: a trial without an outcome failed, or was stopped by the scheduler; one that trained on
    while it was judged is taken back to where it was stopped.

    Raises:
        SslDistError: no trial came to anything.
    """
    trials = begun_trials(directory)
    for run, config in trials:
        if run.name in failures:
            write_outcome(run, "failed", NO_POINT, failures[run.name])
        elif read_outcome(run) is None:
            points = read_points(sweep, config, run)
            write_outcome(run, "stopped", points[-1] if points else NO_POINT)
    if failures and len(failures) == len(trials):
        name, reason = next(iter(failures.items()))
        raise SslDistError(f"all {len(failures)} trials failed, {directory / 'trials' / name}: {reason}")
    if sweep.scheduler in ("asha", "median"):
        from tune.stopping import ByNumber

        for run, point in ByNumber(sweep, directory).stopped().items():
            if run.name not in failures:
                write_outcome(run, "stopped", point)  # also where it came to its end before it was judged
