"""How commands talk: tables, bars and plain lines for a person, one JSON object for a machine.

With --json the object is all that stands on standard output; everything else goes to standard error.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from ssl_dist.files import to_json
from ssl_dist.progress import Pace, ProgressLines

console = Console()
errors = Console(stderr=True, soft_wrap=True)
_json_file: ContextVar[TextIO | None] = ContextVar("standard output while --json keeps it", default=None)


def escape_unprintable() -> None:
    """Print characters that the terminal's encoding lacks as escapes; by default, a command would end in the middle."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def stdout_given_back() -> Iterator[None]:
    """Undo at the end what ``keep_stdout`` did, also where a later option was wrong and the command never began."""
    before = _json_file.get()
    try:
        with contextlib.redirect_stdout(sys.stdout):
            yield
    finally:
        _json_file.set(before)


def keep_stdout(ctx: typer.Context, wanted: bool) -> bool:
    """Keep standard output for the JSON object while a command runs: the callback of --json."""
    if wanted and not ctx.resilient_parsing:
        before = _json_file.set(sys.stdout)
        ctx.call_on_close(lambda: _json_file.reset(before))
        ctx.with_resource(contextlib.redirect_stdout(sys.stderr))
    return wanted


def say(text: str, to: Console = console) -> None:
    """Print a line as it is: no markup, no colours for numbers, no wrapping of paths that a person copies."""
    to.print(text, markup=False, highlight=False, soft_wrap=True)


class LogLines(logging.Handler):
    """Prints each log record on one line, unwrapped: it may hold a path or a command that a person copies."""

    def emit(self, record: logging.LogRecord) -> None:
        errors.print(Text.assemble((f"{record.levelname.lower()}:", "yellow"), f" {self.format(record)}"))


def table(*headings: Column | str, **options: Any) -> Table:
    """Make a table that breaks words on a narrow screen, where rich would cut them."""
    made = Table(*headings, **options)
    for column in made.columns:
        column.overflow = "fold"
    return made


def show(title: str, rows: Iterable[tuple[str, object]], result: dict[str, Any], as_json: bool) -> None:
    """Print a two-column table, and with --json ``result``."""
    console.print(title, style="bold", markup=False, highlight=False, soft_wrap=True)
    shown = table("", "", show_header=False)
    for name, value in rows:
        shown.add_row(name, Text(str(value)))
    console.print(shown)
    print_json(result, as_json)


def print_json(result: dict[str, Any], as_json: bool) -> None:
    """Print the command's JSON object where --json asks for it; numbers that are not finite become null."""
    if as_json:
        print(to_json(result), file=_json_file.get(), flush=True)


class ImageBar:
    """A progress bar over images with rate and time left; call it with (images done, images in all)."""

    def __init__(self, progress: Progress, lines: ProgressLines, title: str, waiting: str) -> None:
        self._progress, self._lines, self._title, self._pace = progress, lines, title, Pace()
        self._task = progress.add_task(f"{title}: {waiting}", total=None, rate="")

    def __call__(self, done: int, total: int) -> None:
        images_per_s, left = self._pace(done, total)
        rate = f"{images_per_s:,.0f} images/s"
        self._progress.update(self._task, description=self._title, completed=done, total=total, rate=rate)
        self._lines.update(", ".join([f"{self._title}: {done:,} of {total:,} images", *([rate, left] if left else [])]))

    def add_note(self, text: str) -> None:
        """Show a note behind the bar's title."""
        self._title = f"{self._title.partition(',')[0]}, {text}"
        self._progress.update(self._task, description=self._title)


@contextlib.contextmanager
def waiting(text: str, to: Console) -> Iterator[Callable[[str], None]]:
    """Show what is waited for; yield a function that replaces it."""
    with ProgressLines(to, text) as lines, to.status(text) as status:

        def replace(text: str) -> None:
            status.update(text)
            lines.update(text, reached=True)

        yield replace


@contextlib.contextmanager
def image_bar(title: str, waiting: str) -> Iterator[ImageBar]:
    """Show a bar while many images are worked on; plain lines where standard error is no terminal.

    Args:
        waiting: what is waited for until the number of images is known.
    """
    bar, done = BarColumn(None), MofNCompleteColumn(table_column=Column(no_wrap=True))  # the bar takes the room left
    columns = (TextColumn("{task.description}"), bar, done, TextColumn("{task.fields[rate]}"))
    lines = ProgressLines(errors, f"{title}: {waiting}")
    with lines, Progress(*columns, TimeRemainingColumn(), console=errors, disable=lines.wanted) as progress:
        yield ImageBar(progress, lines, title, waiting)
