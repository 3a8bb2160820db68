"""The commands that look at a run: at its checkpoints, and at its curves."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

from ssl_dist.commands.console import console, print_json, say, show
from ssl_dist.commands.options import Json, Run
from ssl_dist.errors import RunError

checkpoint = typer.Typer(no_args_is_help=True, add_completion=False, help="List and check a run's checkpoints.")


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
    table = Table(Column("checkpoint", no_wrap=True), "score", "MB", "written", *checked)
    for row in rows:
        score = "" if row["score"] is None else f"{row['score']:.4f}"
        written = datetime.fromtimestamp(row["written"]).strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(row["name"], score, f"{row['bytes'] / 1e6:,.1f}", written, *(Text(row[key]) for key in checked))
    console.print(table)
    print_json({"run": str(run), "checkpoints": rows}, as_json)
    return rows


def report(
    run: Run,
    out: Annotated[Path | None, typer.Option(help="Picture to write. Default: RUN/report.png.")] = None,
    as_json: Json = False,
) -> None:
    """Draw a run's loss, probe, embedding and speed; print its last numbers."""
    from ssl_dist.report.curves import draw

    picture = out or run / "report.png"
    draw(run, picture)
    show_summary(f"{run}: {picture}", run, {"run": str(run), "picture": str(picture)}, as_json)


def show_summary(title: str, run: Path, result: dict[str, Any], as_json: bool, then: Sequence[str] = ()) -> None:
    """Print the table of what a run has reached, and say so where its probe is no better than at step 0.

    Args:
        result: printed with --json, beside the last value of each tag and ``probe_at_step_0``.
        then: lines that follow, each to copy.
    """
    from ssl_dist.report.summary import ProbeCurve, summary
    from ssl_dist.training.metrics import read_metrics

    lines, last = read_metrics(run), dict[str, Any]()
    for line in lines:
        last |= line
    probe = ProbeCurve.of(lines)
    show(title, summary(lines).items(), {}, as_json=False)
    if probe and (verdict := probe.verdict()):
        say(verdict)
    for command in then:
        say(command)
    print_json({**result, **last, "probe_at_step_0": probe and probe.start}, as_json)
