"""The commands that look at a run: at its checkpoints, and at its curves."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column
from rich.text import Text

from ssl_dist.commands.console import console, print_json, say, show, table
from ssl_dist.commands.options import Json, Run
from ssl_dist.errors import ConfigError, RunError
from ssl_dist.uris import without_secrets

if TYPE_CHECKING:
    from ssl_dist.report.page import RunFiles

checkpoint = typer.Typer(no_args_is_help=True, add_completion=False, help="List, check and clear checkpoints of runs.")

# A help text that needs a line of its own.
_KEEP = "What stays: the newest checkpoint, or with best also the one with the best online probe."


@checkpoint.command("list")
def list_(run: Run, as_json: Json = False) -> None:
    """List the checkpoints that a run can resume from, newest first. Reads no tensors: see `verify`."""
    _show_checkpoints(run, as_json, verified=False)


@checkpoint.command()
def verify(run: Run, as_json: Json = False) -> None:
    """Check every byte against its checksum; exit code 1 where a checkpoint is damaged."""
    rows = _show_checkpoints(run, as_json, verified=True)
    if any(row["state"] != "whole" for row in rows):
        raise typer.Exit(1)


def _show_checkpoints(run: Path, as_json: bool, *, verified: bool) -> Sequence[dict[str, Any]]:
    """Print the table of a run's checkpoints, and return its rows."""
    from ssl_dist.checkpoint import Checkpoints

    rows = Checkpoints(run).describe(verified=verified)
    if not rows:
        raise RunError(f"{run} has no checkpoints: give the directory of a run that has written one")
    checked = ["state"] if verified else []
    shown = table(Column("checkpoint", no_wrap=True), "probe", "MB", "written", *checked)
    for row in rows:
        score = "" if row["score"] is None else f"{row['score']:.4f}"
        written = datetime.fromtimestamp(row["written"]).strftime("%Y-%m-%d %H:%M:%S")
        shown.add_row(row["name"], score, f"{row['bytes'] / 1e6:,.1f}", written, *(Text(row[key]) for key in checked))
    console.print(shown)
    print_json({"run": str(run), "checkpoints": rows}, as_json)
    return rows


@checkpoint.command()
def clear(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
    keep: Annotated[str, typer.Option(metavar="newest|best", help=_KEEP)] = "newest",
    yes: Annotated[bool, typer.Option("--yes", help="Delete them. Without it they are only listed.")] = False,
    as_json: Json = False,
) -> None:
    """List the checkpoints that runs which have ended can do without, and delete them with --yes. Mirrors stay."""
    from ssl_dist.checkpoint.clearing import Clearing

    if keep not in ("newest", "best"):
        raise ConfigError(f"--keep {keep}: it is newest, or best for the newest and the best")
    plans = [Clearing.plan(run, keep_best=keep == "best") for run in runs]
    for plan in plans:
        if yes:
            plan.execute()
        for path in plan.kept:
            say(f"kept: {path}")
        for path, size in plan.superfluous.items():
            say(f"{'deleted' if yes else 'would be deleted'}: {path}, {size / 1e6:,.1f} MB")
    total = sum(sum(plan.superfluous.values()) for plan in plans)
    number = sum(len(plan.superfluous) for plan in plans)
    say(f"{number} checkpoints, {total / 1e6:,.1f} MB" + ("" if yes or not number else ": add --yes to delete them"))
    rows = [{"run": str(plan.run), **plan.plain()} for plan in plans]
    print_json({"deleted": yes, "bytes": total, "runs": rows}, as_json)


_PICTURES = (".png", ".svg", ".pdf")
_OUT = "Page to write, or with .png, .svg or .pdf a picture of the curves. Default: report.html in the run's directory."
_PRICE = "Price of an hour of all the run's machines together: the report then has its cost."


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories, or that of a sweep.")],
    out: Annotated[Path | None, typer.Option(help=_OUT)] = None,
    price_per_hour: Annotated[float | None, typer.Option(metavar="PRICE", help=_PRICE)] = None,
    as_json: Json = False,
) -> None:
    """Write a run's report as one HTML file: results, settings, curves, views, evaluation. Several runs: side by side.

    The page needs neither network nor script. What is missing is named, with the command that adds it.
    """
    from ssl_dist.report.page import RunFiles, ranked, write_page
    from ssl_dist.report.pictures import expect_writable

    if price_per_hour is not None and not 0 <= price_per_hour < math.inf:
        raise ConfigError(f"--price-per-hour {price_per_hour:g}: it is 0 or more")
    paths = [path for given in runs for path in _runs_of(given)]
    found = [RunFiles.read(path) for path in paths]
    file = out or _common_folder(runs) / "report.html"
    expect_writable(file, [".html", *_PICTURES])
    if file.suffix.lower() in _PICTURES:
        if len(found) > 1:
            raise ConfigError(f"--out {file}: a picture has the curves of one run: give a name that ends in .html")
        from ssl_dist.report.curves import draw

        draw(paths[0], file)
        show_summary(f"{paths[0]}: {file}", paths[0], {"run": str(paths[0]), "picture": str(file)}, as_json)
        return
    if len(found) == 1:
        write_page(found, "", file, price_per_hour)
        show_summary(f"{paths[0]}: {file}", paths[0], {"run": str(paths[0]), "report": str(file)}, as_json)
        return
    found = ranked(found)
    title = f"Sweep {runs[0].absolute().name}" if len(runs) == 1 else f"{len(found)} runs side by side"
    write_page(found, title, file, price_per_hour)
    _show_together(found, file, as_json)


def _runs_of(path: Path) -> list[Path]:
    """Return a run's directory, or those of a sweep's trials that have begun.

    Raises:
        RunError: the sweep has none.
    """
    if not (path / "sweep.json").exists():
        return [path]
    trials = sorted(file.parent for file in (path / "trials").glob("*/config.json"))
    if not trials:
        raise RunError(f"{path} is a sweep of which no trial has begun: see `ssl-dist status {shlex.quote(str(path))}`")
    return trials


def _common_folder(runs: Sequence[Path]) -> Path:
    """Return the folder of a report: the directory of the only run or sweep, or the one that all of them lie in."""
    return runs[0] if len(runs) == 1 else Path(os.path.commonpath([run.absolute().parent for run in runs]))


def _show_together(runs: Sequence[RunFiles], file: Path, as_json: bool) -> None:
    """Print the table of several runs: their probes and the accuracies of their evaluations."""
    from ssl_dist.report import evaluation
    from ssl_dist.report.page.words import headlines

    measured = [{one.name: one.shown for one in headlines(run)} if run.evaluated else {} for run in runs]
    columns = list(dict.fromkeys(name for one in measured for name in one))
    shown = table("run", "probe", *columns)
    for run, one in zip(runs, measured, strict=True):
        cells = [run.name, "" if run.probe is None else str(run.probe), *(one.get(name, "") for name in columns)]
        shown.add_row(*map(Text, cells))
    console.print(shown)
    say(f"report: {file}")
    rows = [
        {
            "run": str(run.path),
            "step": run.step,
            "probe": run.probe and run.probe.last,
            "evaluation": dict(evaluation.rows(run.path)),
        }
        for run in runs
    ]
    print_json({"report": str(file), "runs": rows}, as_json)


def evaluate_line(run: Path, store: str) -> str:
    """Return the command that measures a run's features, on the part of its store that was held out if there is one."""
    held_out = Path(f"{store}-held-out")
    test = shlex.quote(str(held_out)) if held_out.exists() else "TEST_STORE"
    train = shlex.quote(without_secrets(store))
    return f"ssl-dist evaluate knn {shlex.quote(str(run))} --train {train} --test {test}"


def show_summary(title: str, run: Path, result: dict[str, Any], as_json: bool, then: Sequence[str] = ()) -> None:
    """Print the table of what a run has reached, with its health; say so where its probe is no better than at step 0.

    Args:
        result: printed with --json, beside the last value of each tag and ``probe_at_step_0``.
        then: lines that follow, each to copy.
    """
    from ssl_dist.report import evaluation
    from ssl_dist.report.page.run_files import lines_of
    from ssl_dist.report.summary import ProbeCurve, summary
    from ssl_dist.training.health import read_health

    lines, last = lines_of(run), dict[str, Any]()  # no lines: a finished run, restored from its mirror
    for line in lines:
        last |= line
    probe = ProbeCurve.of(lines)
    evaluated, health = evaluation.rows(run), read_health(run)
    said = [("health", f"step {one.step:,}: {one.text}") for one in health]
    show(title, [*summary(lines).items(), *evaluated, *said], {}, as_json=False)
    if probe and (verdict := probe.verdict()):
        say(verdict)
    for command in then:
        say(command)
    more: dict[str, Any] = {"evaluation": dict(evaluated)} if evaluated else {}
    more |= {"health": [one._asdict() for one in health]}
    print_json({**result, **last, "probe_at_step_0": probe and probe.start, **more}, as_json)
