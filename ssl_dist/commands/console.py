"""How commands talk: tables, bars and plain lines for a person, one JSON object for a machine."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

console = Console()
errors = Console(stderr=True, soft_wrap=True)


def say(text: str, to: Console = console) -> None:
    """Print a line as it is: no markup, no colours for numbers, no wrapping of paths that a person copies."""
    to.print(text, markup=False, highlight=False, soft_wrap=True)


def show(title: str, rows: Iterable[tuple[str, object]], result: dict[str, Any], as_json: bool) -> None:
    """Print a two-column table, and with --json ``result`` as the last line."""
    console.print(title, style="bold", markup=False, highlight=False, soft_wrap=True)
    table = Table(show_header=False)
    for name, value in rows:
        table.add_row(name, Text(str(value)))
    console.print(table)
    print_json(result, as_json)


def print_json(result: dict[str, Any], as_json: bool) -> None:
    """Print one JSON object on a line of its own where --json asks for it; numbers that are not finite become null."""
    if as_json:
        typer.echo(json.dumps(_finite(result)))


def shown(values: dict[str, Any]) -> dict[str, str]:
    """Round numbers to six digits, as tables of a run's metrics show them."""
    return {name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in values.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class ImageBar:
    """A progress bar over images with rate and time left; call it with (images done, images in all)."""

    def __init__(self, progress: Progress, title: str) -> None:
        self._progress, self._title = progress, title
        self._task = progress.add_task(title, total=None, rate="")

    def __call__(self, done: int, total: int) -> None:
        rate = f"{done / (self._progress.tasks[0].elapsed or 1):,.0f} images/s"
        self._progress.update(self._task, completed=done, total=total, rate=rate)

    def add_note(self, text: str) -> None:
        """Show a note behind the bar's title."""
        self._progress.update(self._task, description=f"{self._title}, {text}")


@contextlib.contextmanager
def image_bar(title: str) -> Iterator[ImageBar]:
    """Show a bar while many images are worked on; nothing where standard error is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), console=errors, disable=not errors.is_terminal) as progress:
        yield ImageBar(progress, title)
