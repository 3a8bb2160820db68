"""The command that draws a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ssl_dist.commands.console import show, shown
from ssl_dist.commands.options import Json, Run


def report(
    run: Run,
    out: Annotated[Path | None, typer.Option(help="Picture to write. Default: RUN/report.png.")] = None,
    as_json: Json = False,
) -> None:
    """Draw a run's loss, probe, embedding and speed; print its last numbers."""
    from ssl_dist.report.curves import draw
    from ssl_dist.training.metrics import read_metrics

    picture = out or run / "report.png"
    draw(run, picture)
    last: dict[str, Any] = {}
    for line in read_metrics(run):
        last |= line
    show(f"{run}: {picture}", shown(last).items(), {"run": str(run), "picture": str(picture), **last}, as_json)
