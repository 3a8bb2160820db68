"""Progress in words: how fast something long goes and how long it will take, as lines where no bar can be drawn."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta

from rich.console import Console

_EVERY_S = 30


class ProgressLines:
    """Prints the newest text every 30 s, and at once where something was reached; in a terminal, nothing.

    Args:
        to: where the lines go.
        text: what is waited for before the first update.
    """

    def __init__(self, to: Console, text: str) -> None:
        self._to, self._text, self._since, self._ended = to, text, time.perf_counter(), threading.Event()
        self._printed = ""
        self._thread = threading.Thread(target=self._repeat, name="progress", daemon=True)
        self.wanted = not (to.is_terminal or to.is_jupyter)

    def __enter__(self) -> ProgressLines:
        if self.wanted:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self.wanted:
            self._thread.join()

    def update(self, text: str, *, reached: bool = False) -> None:
        """Replace the text; print it at once where something was ``reached``."""
        if text != self._text:
            self._text, self._since = text, time.perf_counter()
        if reached and self.wanted:
            self._print()

    def _repeat(self) -> None:
        while not self._ended.wait(_EVERY_S):
            self._print()

    def _print(self) -> None:
        """Print the text; where it was printed before, with the time since it was new, as a sign of life."""
        text = self._text
        since = timedelta(seconds=round(time.perf_counter() - self._since))
        old = f" (unchanged for {since})" if text == self._printed else ""
        self._to.print(f"{text}{old}", markup=False, highlight=False, soft_wrap=True)
        self._printed = text


class Tally:
    """Adds up what is done, and tells a callback of it as (done, total).

    Args:
        progress: the callback; None: nobody is told.
        total: how much there is to do.
    """

    def __init__(self, progress: Callable[[int, int], None] | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, more: int) -> None:
        """Add what was done since the last call."""
        self._done += more
        if self._progress:
            self._progress(self._done, self._total)


class Pace:
    """The pace of work, from what was done since the first call."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None

    def __call__(self, done: float, total: float) -> tuple[float, str]:
        """Return the rate in 1/s, and the time left as text; "" where nothing was done yet."""
        now = time.monotonic()
        if self._first is None:
            self._first = now, done
        elapsed, gained = now - self._first[0], done - self._first[1]
        if gained <= 0 or elapsed <= 0:
            return 0.0, ""
        rate = gained / elapsed
        return rate, f"{timedelta(seconds=round(max(0.0, total - done) / rate))} left"
