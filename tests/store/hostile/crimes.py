"""Cases that misbehave, one kind for each thing that is forbidden: the harness must notice them all."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ssl_dist.errors import SslDistError
from tests.store.hostile.meter import MOST_BYTES, Case, Cases


def _kind(crime: Callable[[], object], honest_s: float = 0.0) -> Cases:
    def cases(folder: Path, seed: int) -> Iterator[Case]:
        yield Case(lambda: None, b"")
        yield Case(crime, b"", honest_s)

    return cases


def _hang() -> None:
    while True:
        pass


def _untyped() -> None:
    raise KeyError("a key")


class _Lines(SslDistError):
    def __str__(self) -> str:
        return "two\nlines"


def _lines() -> None:
    raise _Lines


hang = _kind(_hang, honest_s=-0.8)  # noticed after a fifth of the time
crash = _kind(lambda: ctypes.string_at(0))
untyped = _kind(_untyped)
talk = _kind(lambda: os.write(2, b"hello"))
talk_on_stdout = _kind(lambda: os.write(1, b"hello"))
memory = _kind(lambda: bytearray(b"x") * (MOST_BYTES + (200 << 20)), honest_s=9.0)
lines = _kind(_lines)
