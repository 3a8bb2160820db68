"""What a person sees of a command: tables, bars, one line for an error; and what a machine reads."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sys
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ssl_dist.errors import SslDistError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of output.")]

console = Console()
_stderr = Console(stderr=True, soft_wrap=True)


def main(commands: typer.Typer) -> None:
    """Run a command line; an error raised on purpose ends as one line and its exit code, without a traceback."""
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=_stderr, show_path=False, show_time=False)],
    )
    try:
        commands()
    except SslDistError as error:
        _stderr.print(Text.assemble(("error:", "bold red"), f" {error}"))
        sys.exit(error.exit_code)


def show(title: str, rows: Iterable[tuple[str, object]], result: dict[str, Any], as_json: bool) -> None:
    """A two-column table on screen, and with --json the same as the last line."""
    console.print(title, style="bold", markup=False, highlight=False, soft_wrap=True)
    table = Table(show_header=False)
    for name, value in rows:
        table.add_row(name, Text(str(value)))
    console.print(table)
    if as_json:
        print_json(result)


def print_json(result: dict[str, Any]) -> None:
    """One JSON object on a line of its own; what is not a finite number is null."""
    typer.echo(json.dumps(_finite(result)))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class ImageBar:
    """A bar of images with rate and time left; call it with (images done, images in all)."""

    def __init__(self, progress: Progress, what: str) -> None:
        self._progress, self._what = progress, what
        self._task = progress.add_task(what, total=None, rate="")

    def __call__(self, done: int, total: int) -> None:
        rate = f"{done / (self._progress.tasks[0].elapsed or 1):,.0f} images/s"
        self._progress.update(self._task, completed=done, total=total, rate=rate)

    def say(self, text: str) -> None:
        """Say it before the bar."""
        self._progress.update(self._task, description=f"{self._what}, {text}")


@contextlib.contextmanager
def image_progress(what: str) -> Iterator[ImageBar]:
    """A bar for what is done to many images."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), console=_stderr, disable=not _stderr.is_terminal) as progress:
        yield ImageBar(progress, what)
