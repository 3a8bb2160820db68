"""Run a sweep with Ray Tune: start its trials, show the progress bar, and leave files from which it can be resumed.

Every start hands Ray Tune only the trials that have not ended, as their files show; its own state is never restored.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cluster.connect import Background, last_line, ray_with_capacity, worker_capacity, worker_resources
from cluster.run_directory import RunDirectory
from ssl_dist.checkpoint.room import expect_room
from ssl_dist.commands.console import say
from ssl_dist.data import resolve
from ssl_dist.errors import ConfigError, Interrupted, SslDistError
from ssl_dist.machine import KEEP_FREED_MEMORY
from ssl_dist.progress import Pace, ProgressLines
from tune import trial_files
from tune.sweep import Sweep
from tune.trial import run_trial

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # trials write their own metrics
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "120",  # enough to end a step and write a checkpoint
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}
_POLL_S = 2.0
_WAITING = "waiting for a worker"
_DRIVER_CPUS = 0.01  # for a trial of several workers: its driver only waits, and they have the accelerators
_RETRIES = 2  # when the node of a trial's driver dies; lost workers are Ray Train's to restart
_KEPT_CHECKPOINTS = 4  # Ray Tune keeps this many of each member of a population

log = logging.getLogger(__name__)


def run_sweep(sweep: Sweep, directory: Path, console: Console, *, concurrency: int | None = None) -> None:
    """Start or resume the sweep's trials, to the end or until Ctrl-C.

    Args:
        concurrency: number of trials at once; None: as many as the cluster has room for.

    Raises:
        RunError: another process runs this sweep.
        ClusterError: Ray cannot be reached, or has no room for one trial.
        Interrupted: Ctrl-C; the message says how to resume.
        SslDistError: every trial failed; the message is the first one's reason.
    """
    for name, value in {**_ENVIRONMENT, **KEEP_FREED_MEMORY}.items():  # a Ray that starts here hands them on
        os.environ.setdefault(name, value)
    held = RunDirectory(directory.absolute())
    held.acquire_lock()
    try:
        _run(sweep, held, directory, console, concurrency)
    finally:
        held.release()


def _run(sweep: Sweep, held: RunDirectory, directory: Path, console: Console, concurrency: int | None) -> None:
    """Run the trials of a sweep whose directory is locked."""
    cluster = sweep.recipe.cluster
    drivers = int(cluster.workers.max > 1)
    with ray_with_capacity(cluster, drivers=drivers):
        at_once = min(worker_capacity(cluster, drivers) // cluster.workers.max, sweep.num_trials)
        at_once = min(at_once, concurrency or at_once)
        if sweep.scheduler == "pbt" and drivers and at_once < sweep.num_trials:
            raise ConfigError(
                f"--scheduler pbt with trials of {cluster.workers.max} workers runs all of them at once, and there is"
                f" room for {at_once}: set --samples {at_once}, or cluster.workers=1, whose trials take turns"
            )
        say(_announcement(sweep, directory, at_once), console)
        for _ in range(1 + _RETRIES):
            _run_once(sweep, held, directory, console, at_once)
            if sweep.scheduler == "pbt" or len(trial_files.begun_trials(directory)) >= sweep.num_trials:
                break  # none was lost with a process that died after an earlier trial's end: Ray Tune repeats no reset


def _run_once(sweep: Sweep, held: RunDirectory, directory: Path, console: Console, at_once: int) -> None:
    """Run the trials that have not ended, by one start of Ray Tune, and write how each of them ended."""
    fit = Background(lambda: _fit(sweep, directory, at_once))
    fit.start()
    try:
        _show_progress(fit, sweep, held, console)
    except KeyboardInterrupt:
        held.ask_to_stop()  # its status tells that it was stopped
        resume = f"ssl-dist tune --resume {shlex.quote(str(directory))}"
        raise Interrupted(f"stopped; every trial resumes from its newest checkpoint with: {resume}") from None
    if fit.error:
        raise fit.error
    _write_missing_outcomes(sweep, directory, fit.result)


def _fit(sweep: Sweep, directory: Path, at_once: int) -> dict[str, str]:
    """Run all trials; return the failed ones' reasons by the names of their run directories."""
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    logging.getLogger("ray._private.worker").addFilter(lambda record: "SIGTERM handler" not in record.getMessage())
    search, failures = _search(sweep, directory), {}
    if search is None:
        return {}
    sweep.recipe.expect_same_data(resolve(sweep.recipe).config)  # here, so that no trial counts as failed
    known = [sweep.config(sample) for sample in sweep.known_samples]
    expect_room(directory, known or sweep.samples * [sweep.recipe])
    found = _tuner(sweep, directory, at_once, *search).fit()
    trials = found._experiment_analysis.trials  # a result has no settings where its trial ended before the first report
    for result, trial in zip(found, trials, strict=True):
        if result.error:
            failures[_run_of(sweep, directory, trial)] = last_line(result.error)
    return failures


def _run_of(sweep: Sweep, directory: Path, trial: Any) -> str:
    """Return the name of the run in which a trial ended; in a population, the last that its member has begun."""
    for run, _ in trial_files.begun_trials(directory):
        origin = trial_files.read_origin(run)
        if origin and origin["trial"] == trial.trial_id and trial_files.read_outcome(run) is None:
            return run.name
    return trial_files.path_of(directory, sweep.config(sweep.sample_from(trial.config))).name


def _search(sweep: Sweep, directory: Path) -> tuple[dict[str, Any] | None, dict[str, Any]] | None:
    """Return Ray Tune's ``param_space`` and search options for the trials that have not ended; None if all have."""
    import ray.tune

    if sweep.search == "optuna":
        from tune.optuna_search import DistinctOptunaSearch

        begun = trial_files.begun_trials(directory)
        unended = sum(trial_files.read_outcome(run) is None for run, _ in begun)
        number = unended + max(0, sweep.num_trials - len(begun))
        search = {"search_alg": DistinctOptunaSearch(sweep, directory), "num_samples": number}
        return (None, search) if number else None
    if sweep.scheduler == "pbt":
        from tune.population import member_samples

        samples = member_samples(sweep, directory)
    else:
        runs = ((sample, trial_files.path_of(directory, sweep.config(sample))) for sample in sweep.known_samples)
        ended = {run for run, _ in trial_files.begun_trials(directory) if trial_files.read_outcome(run) is not None}
        samples = [sample for sample, run in runs if run not in ended]
    return ({"sample": ray.tune.grid_search(samples)}, {}) if samples else None


def _tuner(sweep: Sweep, directory: Path, at_once: int, space: dict[str, Any] | None, search: dict[str, Any]) -> Any:
    import ray.tune

    directory = directory.absolute()
    function = ray.tune.with_parameters(run_trial, sweep=sweep.model_dump(mode="json"), directory=str(directory))
    cluster = sweep.recipe.cluster
    alone = cluster.workers.max == 1  # the worker is the trial's own process
    need = worker_resources(cluster) if alone else {"CPU": _DRIVER_CPUS}
    shutil.rmtree(directory / "ray", ignore_errors=True)  # an earlier start left it
    retries = ray.tune.FailureConfig(max_failures=_RETRIES)
    kept = ray.tune.CheckpointConfig(num_to_keep=_KEPT_CHECKPOINTS)
    return ray.tune.Tuner(
        ray.tune.with_resources(function, need),
        param_space=space,
        tune_config=ray.tune.TuneConfig(
            metric="objective",
            mode="max",
            scheduler=_scheduler(sweep, directory),
            max_concurrent_trials=None if sweep.scheduler == "pbt" else at_once,  # members wait for each other
            # A process that has trained alone can train again. With several workers it cannot: DeepSpeed keeps the
            # first process group.
            reuse_actors=alone,
            **search,
        ),
        run_config=ray.tune.RunConfig(
            name="ray", storage_path=str(directory), verbose=0, failure_config=retries, checkpoint_config=kept
        ),
    )


def _scheduler(sweep: Sweep, directory: Path) -> Any:
    if sweep.scheduler == "none":
        return None
    if sweep.scheduler == "pbt":
        from tune.population import PopulationScheduler

        return PopulationScheduler(sweep)
    from tune.stopping import StoppingScheduler

    return StoppingScheduler(sweep, directory)


def _announcement(sweep: Sweep, directory: Path, at_once: int) -> str:
    cluster = sweep.recipe.cluster
    text = f"{sweep.num_trials} trials, {at_once} at once, {cluster.workers.max} worker(s) each"
    configs = [sweep.config(sample) for sample in sweep.known_samples]
    if configs:
        most = sum(map(sweep.budget_images, configs))
        text += f"; at most {most:,} images"
        if sweep.scheduler == "asha":
            text += f", at best {sum(map(sweep.expected_images, configs)):,.0f} as ASHA stops trials"
    if begun := trial_files.begun_trials(directory):
        ended = sum(trial_files.read_outcome(run) is not None for run, _ in begun)
        text += f"; {len(begun)} have begun before, {ended} of them have ended"
        text += ", and Optuna is told their results" if sweep.search == "optuna" else ""
    return text


def _show_progress(fit: Background, sweep: Sweep, held: RunDirectory, console: Console) -> None:
    """Show a bar over images until the fit ends; the number still to come is estimated anew as trials end."""
    columns = (TextColumn("images"), BarColumn(None), TextColumn("{task.fields[numbers]}"))
    known = [sweep.expected_images(sweep.config(sample)) for sample in sweep.known_samples]
    usual = sum(known) / len(known) if known else sweep.expected_images(sweep.recipe)
    lines, pace = ProgressLines(console, _WAITING), Pace()
    reached: tuple[int, float | None] = (0, None)
    clocks = (TimeElapsedColumn(), TimeRemainingColumn())
    with lines, Progress(*columns, *clocks, console=console, disable=lines.wanted) as bar:
        task = bar.add_task("images", total=None, numbers=_WAITING)
        while fit.is_alive():
            fit.join(timeout=_POLL_S)
            held.give_sign_of_life()
            if held.stop_asked():
                raise KeyboardInterrupt  # `ssl-dist stop`, in another terminal
            seen, expected, ended, best = _progress(sweep, held.path, usual)
            numbers = f"{_short(seen)} of {_short(expected)}  {ended} of {sweep.num_trials} trials"
            numbers += "" if seen else f", {_WAITING}"
            if best is not None:
                numbers += f"  {sweep.objective} {best:.4g}"
            bar.update(task, total=expected, completed=seen, numbers=numbers)
            before, reached = reached, (ended, best)
            lines.update(
                ", ".join(filter(None, (f"images {numbers}", pace(seen, expected)[1]))), reached=reached != before
            )


def _short(images: float) -> str:
    """Format a number of images, a large one in thousands (k)."""
    return f"{images:,.0f}" if images < 10_000 else f"{images / 1000:,.0f}k"


def _progress(sweep: Sweep, directory: Path, usual: float) -> tuple[float, float, int, float | None]:
    """Read the sweep's progress from its files.

    Args:
        usual: images that a trial which has not begun is expected to see.

    Returns:
        Images seen, images expected in all, trials ended, and the best objective of the finished trials.
    """
    seen = expected = 0.0
    objectives, begun, ended = [], 0, 0
    for run, config in trial_files.begun_trials(directory):
        outcome, origin = trial_files.read_outcome(run), trial_files.read_origin(run)
        here, before = trial_files.images_seen(run, config), origin["step"] * config.batch.size if origin else 0
        seen += here
        usual_here = sweep.expected_images(config) - before
        unended = usual_here if here < usual_here else sweep.budget_images(config) - before  # it was let on
        expected += here if outcome else unended
        begun += not before
        ended += outcome is not None and outcome["status"] != "replaced"
        if outcome and outcome["status"] == "finished":
            objectives.append(outcome["objective"])
    expected += usual * max(0, sweep.num_trials - begun)
    return seen, expected, ended, max(objectives, default=None)


def _write_missing_outcomes(sweep: Sweep, directory: Path, failures: dict[str, str]) -> None:
    """Write the outcomes that only the end of the sweep decides.

    A trial without an outcome failed, or was stopped by the scheduler. A trial that trained on while it was judged is
    taken back to the point at which it was stopped.

    Raises:
        SslDistError: every trial failed.
    """
    trials = trial_files.begun_trials(directory)
    if unbegun := failures.keys() - {run.name for run, _ in trials}:
        log.warning("%d trials failed before they began: %s", len(unbegun), failures[min(unbegun)])
    for run, config in trials:
        if trial_files.read_outcome(run) is not None:
            continue  # it has ended, whatever came afterwards
        if run.name in failures:
            trial_files.write_outcome(run, "failed", trial_files.NO_POINT, failures[run.name])
        else:
            trial_files.write_outcome(run, "stopped", trial_files.last_point(sweep, config, run))
    outcomes = [trial_files.read_outcome(run) for run, _ in trials]
    if failures and all(outcome is None or outcome["status"] == "failed" for outcome in outcomes):
        name, reason = next(iter(failures.items()))
        raise SslDistError(f"all {len(failures)} trials failed, the first, {directory / 'trials' / name}: {reason}")
    if sweep.scheduler in ("asha", "median"):
        from tune.stopping import StoppingScheduler

        for run, point in StoppingScheduler(sweep, directory).stopped().items():
            if run.name not in failures:
                trial_files.write_outcome(run, "stopped", point)  # also where it finished before it was judged
