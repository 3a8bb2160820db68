"""The signals that end a command: Ctrl-C, SIGTERM, and SIGHUP, which comes when a terminal or an ssh session closes."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Call ``handler`` at each signal that ends a command, in a main thread; other threads receive none.

    Where SIGHUP is ignored (``nohup``) it stays ignored. After it the terminal is gone, and what is written there goes
    nowhere; further ones are ignored, because a shell and the system both send it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    terminals = [number for number in range(3) if os.isatty(number)]

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            nowhere = os.open(os.devnull, os.O_RDWR)
            for terminal in terminals:
                os.dup2(nowhere, terminal)
        handler(number, frame)

    taken = [one for one in ENDING if one != signal.SIGHUP or signal.getsignal(one) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in taken}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, as Ctrl-C does."""
    raise KeyboardInterrupt
