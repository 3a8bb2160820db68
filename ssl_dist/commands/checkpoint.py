"""The commands that look at a run's checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from ssl_dist.commands.console import console, print_json
from ssl_dist.commands.options import Json, Run
from ssl_dist.errors import RunError

app = typer.Typer(no_args_is_help=True, add_completion=False, help="List and check a run's checkpoints.")


@app.command("list")
def list_(run: Run, as_json: Json = False) -> None:
    """List the checkpoints that a run can resume from, newest first. Reads no tensors: see `verify`."""
    from ssl_dist.checkpoint import Checkpoints

    _show(run, Checkpoints(run).describe(), as_json)


@app.command()
def verify(run: Run, as_json: Json = False) -> None:
    """Check every byte against its checksum; exit code 1 where a checkpoint is damaged."""
    from ssl_dist.checkpoint import Checkpoints

    rows = Checkpoints(run).describe(verified=True)
    _show(run, rows, as_json)
    if any(row["state"] != "whole" for row in rows):
        raise typer.Exit(1)


def _show(run: Path, rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    if not rows:
        raise RunError(f"{run} has no checkpoints: give the directory of a run that has written one")
    checked = ["state"] if "state" in rows[0] else []
    table = Table("checkpoint", "score", "MB", "written", *checked)
    for row in rows:
        score = "" if row["score"] is None else f"{row['score']:.4f}"
        written = datetime.fromtimestamp(row["written"]).strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(row["name"], score, f"{row['bytes'] / 1e6:,.1f}", written, *(row[key] for key in checked))
    console.print(table)
    if as_json:
        print_json({"run": str(run), "checkpoints": rows})
