"""The command that pretrains, or resumes a run."""

from __future__ import annotations

import shlex
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssl_dist.commands.console import console, print_json, say, show
from ssl_dist.commands.options import Json, Recipe, Settings, expect_run, overrides_of
from ssl_dist.commands.runs import evaluate_line, show_summary
from ssl_dist.errors import ConfigError, Interrupted, SslDistError
from ssl_dist.files import expect_folder
from ssl_dist.reading import find_recipe
from ssl_dist.timing import mark, marks

if TYPE_CHECKING:
    from cluster.run_directory import RunDirectory
    from ssl_dist.config import ResolvedConfig


_RUNS = Path("runs")
_PROFILED = 20  # steps

# Help texts that need a line of their own.
_OUT = "Folder in which the run gets a directory of its own. Default: runs."
_RESUME = "Resume this run from its newest valid checkpoint; s3://.../RUN restores a run from its mirror."
_PRINT = "Print the run's settings as a recipe, with all defaults, and start nothing."
_PROFILE = "At the end show where the time of the start and of some steps went; RUN/profile has a trace of them."
_DRY = "Check the store, the settings and this machine, show steps and sizes, and start nothing."


def pretrain(
    recipe: Recipe = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help=_OUT)] = None,
    run_dir: Annotated[Path | None, typer.Option(help="The run's directory itself; must be new or empty.")] = None,
    resume: Annotated[str | None, typer.Option(metavar="RUN_DIR", help=_RESUME)] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help=_PRINT)] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help=_DRY)] = False,
    profile: Annotated[bool, typer.Option("--profile", help=_PROFILE)] = False,
    as_json: Json = False,
) -> None:
    """Pretrain an encoder with Ray Train and DeepSpeed, on this machine or on the cluster of RAY_ADDRESS."""
    mark("command found")
    overrides = ({"monitor.profile_steps": _PROFILED} if profile else {}) | overrides_of(settings)
    if recipe is not None:
        find_recipe(recipe)  # a typo is answered before torch is imported
    from cluster.guards import check_machine, warn_of_emulated_bf16, warn_of_warm_up
    from cluster.prepare import resolve, restore
    from cluster.run_directory import RunDirectory
    from ssl_dist.checkpoint.room import expect_room

    if resume is not None and recipe is None:
        is_mirror = "://" in resume
        if run_dir or print_config or dry_run or (out and not is_mirror):
            raise ConfigError("--out, --run-dir, --print-config and --dry-run are for a new run, not for --resume")
        _resume(restore(resume, out or _RUNS) if is_mirror else expect_run(Path(resume)), overrides, as_json)
    elif recipe is not None and resume is None:
        if out and run_dir:
            raise ConfigError(f"--out {out} and --run-dir {run_dir}: give one of them")
        if print_config and dry_run:
            raise ConfigError("--print-config and --dry-run: give one of them")
        config = resolve(recipe, overrides)
        if print_config:
            typer.echo(config.to_yaml(), nl=False)
            print_json(config.model_dump(mode="json"), as_json)
            return
        check_machine(config.cluster)
        warn_of_warm_up(config)
        warn_of_emulated_bf16(config)
        directory = run_dir or (out or _RUNS) / _new_name(Path(recipe), config)
        if dry_run:
            expect_folder(directory)
            expect_room(directory, [config])
            _show_plan(config, directory, as_json)
            return
        train(RunDirectory.create(directory, config, recipe), config, as_json)
    else:
        raise ConfigError("give either a recipe, or --resume RUN_DIR")


def _new_name(recipe: Path, config: ResolvedConfig) -> str:
    """Return the name of a new run: that of its recipe, or of the run whose config is its recipe, and a time."""
    of = recipe.absolute().parent.name if recipe.name == "config.json" else recipe.stem
    return f"{of}-{datetime.now():%Y%m%d-%H%M%S}-{config.fingerprint()[:6]}"


def _resume(directory: Path, overrides: dict[str, Any], as_json: bool) -> None:
    """Resume a run; of a run that has all its steps, say so."""
    from cluster.prepare import how_to_train_longer, reopen

    run, config, step, finished = reopen(directory, overrides)
    if finished:
        run.release()
        more = how_to_train_longer(config, step, directory)
        early = step < config.plan().total_steps
        has = f"it ended early, after step {step}" if early else f"it has all {step} steps of {config.epochs:g} epochs"
        say(f"{directory} is finished: {has}. {more}")
        print_json({"run": str(run.path), "step": step}, as_json)
        return
    say(f"continuing from step {step}" if step else "no checkpoint yet: starting from step 0")
    train(run, config, as_json)


def _show_plan(config: ResolvedConfig, run: Path, as_json: bool) -> None:
    """Show where the run would stand, its length, and the sizes of its batch and its checkpoints."""
    from ssl_dist.checkpoint.room import checkpoint_bytes

    plan, batch, kept = config.plan(), config.batch, config.checkpoint
    size, most = checkpoint_bytes(config), kept.keep + kept.keep_best + 1  # one more while it is written
    values = {"images": plan.num_samples, "epochs": config.epochs, "steps": plan.total_steps}
    values |= {"warm-up steps": plan.warmup_steps, "batch": batch.size, "micro-batch": batch.micro}
    values |= {"micro-batches": batch.num_micro, "workers": config.cluster.workers.max}
    megabytes = {"MB of a checkpoint": round(size / 1e6, 1), "MB of checkpoints": round(size * most / 1e6, 1)}
    values |= {"checkpoints kept": most, **megabytes}
    plain = {name.replace(" ", "_").replace("-", "_"): value for name, value in values.items()}
    rows = [("run directory", run), *((name, f"{value:,}") for name, value in values.items())]
    show("dry run: nothing was started", rows, {"run": str(run), **plain}, as_json)


def train(run: RunDirectory, config: ResolvedConfig, as_json: bool) -> None:
    """Launch a run, follow it to its end, and show its last numbers."""
    mark("settings, store and machine checked")
    say(f"run directory {run.path}")
    say(f"watch it with: tensorboard --logdir {shlex.quote(str(run.path))}")
    try:
        from cluster.launch import launch

        try:
            metrics = launch(config, run, console)
        finally:  # also after Ctrl-C, because a long run is profiled at its beginning
            profile = _show_profile(run.path, config)
    except SslDistError:
        run.discard()
        raise
    except KeyboardInterrupt:  # before `launch` took over
        run.discard()
        raise Interrupted("stopped before it began") from None
    result = {"run": str(run.path), **metrics, **profile}
    show_summary(run.path.name, run.path, result, as_json, _next_commands(run.path, config))


def _show_profile(run: Path, config: ResolvedConfig) -> dict[str, Any]:
    """Show the profile of a run that has one; return it as an entry of the command's JSON object."""
    if not config.monitor.profile_steps:
        return {}
    from ssl_dist.commands.profile import show_profile
    from ssl_dist.training.profiling import read_profile

    found = read_profile(run)
    show_profile(found, marks())
    return {"profile": found}


def _next_commands(run: Path, config: ResolvedConfig) -> list[str]:
    """Return the commands that a person may want next, each on a line to copy."""
    return [
        f"its report: ssl-dist report {shlex.quote(str(run))}",
        f"its features: {evaluate_line(run, config.data.store)}",
    ]
