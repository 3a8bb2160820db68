"""The console script ``ssl-dist``: adds the commands of sweeps."""

from __future__ import annotations

import shlex
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from cluster.cli import Set, app, resolve
from ssl_dist.commands.console import Json, console, main, print_json
from ssl_dist.errors import ConfigError, RunError

if TYPE_CHECKING:
    from tune.sweep import Sweep


class _RunByDefault(TyperGroup):
    """``ssl-dist tune RECIPE`` is ``ssl-dist tune run RECIPE``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["run", *args]
        return super().parse_args(ctx, args)


tune_app = typer.Typer(
    cls=_RunByDefault,
    no_args_is_help=True,
    help="Search settings over whole pretraining runs: `ssl-dist tune RECIPE`, then `ssl-dist tune results DIR`.",
)
app.add_typer(tune_app, name="tune")


@tune_app.command("run")
def tune_run(
    recipe: Annotated[
        str | None, typer.Argument(help="Recipe file, or the name of one that comes with the package.")
    ] = None,
    space: Annotated[
        Path | None, typer.Option(help="YAML of dotted keys and their domains; see docs/search.md.")
    ] = None,
    settings: Set = None,
    search: Annotated[str, typer.Option(help="random, grid or optuna.")] = "random",
    scheduler: Annotated[str, typer.Option(help="asha, median, pbt or none.")] = "asha",
    samples: Annotated[int, typer.Option(min=1, help="Trials; a grid has as many as it has.")] = 16,
    objective: Annotated[str, typer.Option(help="knn, linear; without labels rankme, lidar.")] = "knn",
    rung_epochs: Annotated[
        float | None, typer.Option(help="Epochs between measurements; ASHA's first rung. Default: see docs/search.md.")
    ] = None,
    reduction: Annotated[int, typer.Option(min=2, help="ASHA: one trial in so many goes on at a rung.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Of the samples.")] = 0,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Trials at once. Default: what there is room for.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder in which the sweep gets a directory of its own.")] = Path("sweeps"),
    sweep_dir: Annotated[Path | None, typer.Option(help="The sweep's directory itself; must be new or empty.")] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="SWEEP", help="Go on with this sweep, every trial where it was.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Search learning rate, temperature, batch size and epochs (or any settings) with Ray Tune.

    Each trial is a pretraining of its own; trials are ranked by a probe, at equal numbers of images seen.
    """
    from tune import space as spaces
    from tune.results import conclude
    from tune.runner import drive
    from tune.sweep import Sweep

    if (recipe is None) == (resume is None):
        raise ConfigError("give either a recipe, or --resume SWEEP")
    if resume is not None:
        directory, sweep = resume, Sweep.read(resume)
    else:
        assert recipe is not None, "checked above"
        options = {"search": search, "scheduler": scheduler, "samples": samples, "objective": objective}
        rule = {"rung_epochs": rung_epochs, "reduction": reduction, "seed": seed}
        sweep = Sweep.make(recipe=_base(recipe, settings), space=spaces.load(space), **options, **rule)
        sweep.check()
        directory = sweep_dir or out / f"{Path(recipe).stem}-{datetime.now():%Y%m%d-%H%M%S}"
        _write(sweep, directory)
    console.print(f"sweep directory {directory}", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"watch it with: tensorboard --logdir {shlex.quote(str(directory))}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    drive(sweep, directory, console, concurrency=concurrency)
    conclude(sweep, directory)
    _show(sweep, directory, as_json)


def _write(sweep: Sweep, directory: Path) -> None:
    if directory.exists() and any(directory.iterdir()):
        raise RunError(f"{directory} is not empty: go on with it by --resume {directory}, or choose another")
    sweep.write(directory)


def _base(recipe: str, settings: list[str] | None) -> Any:
    from ssl_dist.config.overrides import parse_override

    return resolve(recipe, dict(parse_override(text) for text in settings or []))


@tune_app.command("results")
def tune_results(
    sweep: Annotated[Path, typer.Argument(help="Directory that `ssl-dist tune` printed.")],
    as_json: Json = False,
) -> None:
    """Table of the trials, importance of each setting, a picture, and the best recipe; also while the sweep runs."""
    from tune.results import conclude
    from tune.sweep import Sweep

    found = Sweep.read(sweep)
    conclude(found, sweep)
    _show(found, sweep, as_json)


def _show(sweep: Sweep, directory: Path, as_json: bool) -> None:
    from rich.table import Table

    from tune.results import importances, read, winner

    trials = read(sweep, directory)
    keys = list(sweep.space)
    origin = ["goes on from"] if sweep.scheduler == "pbt" else []
    table = Table("trial", *(key.rpartition(".")[2] for key in keys), "images", sweep.objective, "", *origin)
    for one in trials:
        values = [
            f"{one.sample[key]:.4g}" if isinstance(one.sample[key], float) else str(one.sample[key]) for key in keys
        ]
        parent = f"{one.parent} at step {one.parent_step}" if one.parent else ""
        table.add_row(
            one.run.name, *values, f"{one.images:,}", f"{one.objective:.4f}", one.status, *(origin and [parent])
        )
    console.print(table)
    weights = importances(sweep, trials)
    if weights:
        console.print(
            "importance: " + ", ".join(f"{key} {weight:.0%}" for key, weight in weights.items()), highlight=False
        )
    best = winner(trials)
    if best:
        for line in (
            f"best: trial {best.run.name}, {sweep.objective} {best.objective:.4f}",
            f"its recipe: ssl-dist pretrain {shlex.quote(str(directory / 'best.yaml'))}",
            f"its encoder: ssl-dist evaluate knn {shlex.quote(str(directory / 'best'))} --train STORE --test STORE",
            f"picture: {directory / 'parallel.png'}",
        ):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if as_json:
        print_json(
            {
                "sweep": str(directory),
                "best": best.plain() if best else None,
                "images": sum(one.images_seen for one in trials),
                "importance": weights,
                "trials": [one.plain() for one in trials],
            }
        )


def run() -> None:
    main(app)


if __name__ == "__main__":
    run()
