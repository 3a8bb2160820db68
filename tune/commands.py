"""The commands of sweeps: ``ssl-dist tune``."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text
from typer.core import TyperGroup

from ssl_dist.commands.console import console, print_json, say, table
from ssl_dist.commands.options import Json, Recipe, Settings, overrides_of
from ssl_dist.commands.runs import evaluate_line
from ssl_dist.errors import ConfigError

if TYPE_CHECKING:
    from tune.results import Trial
    from tune.sweep import Sweep

# Help texts that need a line of their own.
_OUT = "Folder in which the sweep gets a directory of its own. Default: sweeps."
_RUNGS = "Epochs between two probes and to ASHA's first rung. Default: docs/search.md."
_RESUME = "Resume this sweep, every trial from its newest checkpoint."

_STATES = {"stopped": "stopped early"}  # by the scheduler; a person's "stopped" is another thing


class _RunByDefault(TyperGroup):
    """``ssl-dist tune RECIPE`` is ``ssl-dist tune run RECIPE``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunByDefault,
    no_args_is_help=True,
    add_completion=False,
    help="Search settings over whole pretraining runs: `ssl-dist tune RECIPE`, then `ssl-dist tune results DIR`.",
)


@app.command()
def run(
    ctx: typer.Context,
    recipe: Recipe = None,
    space: Annotated[Path | None, typer.Option(help="YAML: dotted keys and domains; see docs/search.md.")] = None,
    settings: Settings = None,
    search: Annotated[str, typer.Option(help="random, grid or optuna.")] = "random",
    scheduler: Annotated[str, typer.Option(help="asha, median, pbt or none.")] = "asha",
    samples: Annotated[int, typer.Option(min=1, help="Number of trials; ignored by --search grid.")] = 16,
    objective: Annotated[str, typer.Option(help="knn, linear; without labels rankme, lidar.")] = "knn",
    rung_epochs: Annotated[float | None, typer.Option(help=_RUNGS)] = None,
    reduction: Annotated[int, typer.Option(min=2, help="ASHA: one trial in this many continues at a rung.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the samples.")] = 0,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Trials at once. Default: as many as fit.")] = None,
    out: Annotated[Path | None, typer.Option(help=_OUT)] = None,
    sweep_dir: Annotated[Path | None, typer.Option(help="The sweep's directory itself; must be new or empty.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="SWEEP", help=_RESUME)] = None,
    as_json: Json = False,
) -> None:
    """Search learning rate, temperature, batch size and epochs (or any settings) with Ray Tune.

    Each trial is a pretraining of its own; trials are ranked by a probe, at equal numbers of images seen.
    """
    from tune import trial_files
    from tune.sweep import Sweep

    if resume is not None and recipe is None:
        _expect_no_other_options(ctx)
        directory, sweep = resume, Sweep.read(resume)
        if trial_files.all_ended(sweep, directory):
            say(f"{directory} is finished: its {sweep.num_trials} trials have ended; start a new sweep for more")
            _show(sweep, directory, as_json)
            return
    elif recipe is not None and resume is None:
        if out and sweep_dir:
            raise ConfigError(f"--out {out} and --sweep-dir {sweep_dir}: give one of them")
        options = {"search": search, "scheduler": scheduler, "samples": samples, "objective": objective}
        options |= {"rung_epochs": rung_epochs, "reduction": reduction, "seed": seed}
        directory = sweep_dir or (out or Path("sweeps")) / f"{Path(recipe).stem}-{datetime.now():%Y%m%d-%H%M%S}"
        sweep = _create(recipe, space, settings, directory, options)
    else:
        raise ConfigError("give either a recipe, or --resume SWEEP")
    from tune.runner import run_sweep  # imports Ray: a mistake above is told before

    say(f"sweep directory {directory}")
    say(f"watch it with: tensorboard --logdir {shlex.quote(str(directory))}")
    run_sweep(sweep, directory, console, concurrency=concurrency)
    _show(sweep, directory, as_json)


def _expect_no_other_options(ctx: typer.Context) -> None:
    """Refuse an option that a resumed sweep would not follow."""
    for one in ctx.command.params:
        source = ctx.get_parameter_source(one.name or "")
        if one.name not in ("resume", "concurrency", "as_json") and source and source.name == "COMMANDLINE":
            raise ConfigError(f"{one.opts[0]}: a resumed sweep stays what it was; only --concurrency may change")


def _create(
    recipe: str, space: Path | None, settings: list[str] | None, directory: Path, options: dict[str, Any]
) -> Sweep:
    """Make a sweep in a new directory, and refuse it where some trial could not run."""
    from cluster.guards import check_machine, warn_of_emulated_bf16, warn_of_warm_up
    from cluster.prepare import resolve
    from tune import space as spaces
    from tune.sweep import Sweep

    sweep = Sweep.make(recipe=resolve(recipe, overrides_of(settings)), space=spaces.load(space), **options)
    check_machine(sweep.recipe.cluster)
    sweep.check()
    warn_of_warm_up(min(map(sweep.config, sweep.known_samples), key=lambda one: one.epochs, default=sweep.recipe))
    warn_of_emulated_bf16(sweep.recipe)
    sweep.write(directory)
    return sweep


@app.command()
def results(
    sweep: Annotated[Path, typer.Argument(help="Directory that `ssl-dist tune` printed.")],
    as_json: Json = False,
) -> None:
    """Show the trials, the importance of each setting, a picture, and the best recipe; also while the sweep runs."""
    from tune.sweep import Sweep

    _show(Sweep.read(sweep), sweep, as_json)


def _show(sweep: Sweep, directory: Path, as_json: bool) -> None:
    """Write the results beside the trials, and show them."""
    from tune.results import winner, write_results

    trials, weights = write_results(sweep, directory)
    if trials:
        console.print(_table(sweep, trials))
    else:
        say("no trial has begun")
    if weights:
        shares = ", ".join(f"{key} {weight:.0%}" for key, weight in weights.items())
        say(f"importance, a rough one of {len(trials)} trials: {shares}")
    for one in trials:
        if one.reason:
            say(f"{one.run.name} {one.status}: {one.reason}")
    best = winner(trials)
    if best:
        say(f"best: trial {best.run.name}, {sweep.objective} {best.objective:.4f}")
        say(f"its recipe: ssl-dist pretrain {shlex.quote(str(directory / 'best.yaml'))}")
        say(f"its features: {evaluate_line(directory / 'best', sweep.recipe.data.store)}")
        say(f"picture: {directory / 'parallel.png'}")
    elif trials:
        say("no trial has finished, so none is the best")
    totals = {"sweep": str(directory), "images": sum(one.images_seen for one in trials), "importance": weights}
    plain = {"best": best.plain() if best else None, "trials": [one.plain() for one in trials]}
    print_json({**totals, **plain}, as_json)


def _table(sweep: Sweep, trials: list[Trial]) -> Table:
    """Lay out one row a trial; in a population, also the trial whose checkpoint it started from.

    The settings have a column each where that fits the console, or else one column together.
    """
    from tune.space import names, show, show_value

    def rows(headings: list[str], settings: Callable[[Trial], list[str]]) -> Table:
        last = ["started from"] if sweep.scheduler == "pbt" else []
        shown = table(Column("trial", no_wrap=True), *headings, "images", sweep.objective, "state", *last)
        for one in trials:
            parent = [f"{one.parent} at step {one.parent_step}"] if one.parent else []
            state = _STATES.get(one.status, one.status)
            measured = [f"{one.images:,}", f"{one.objective:.4f}"] if one.images else ["", ""]
            cells = [*settings(one), *measured, state, *parent]
            shown.add_row(one.run.name, *map(Text, cells))
        return shown

    apart = rows([*names(sweep.space).values()], lambda one: [show_value(value) for value in one.sample.values()])
    endless = console.options.update(max_width=10_000)  # a table is measured as no wider than the screen
    if console.measure(apart, options=endless).maximum <= console.width:
        return apart
    return rows(["settings"], lambda one: [show(one.sample)])
