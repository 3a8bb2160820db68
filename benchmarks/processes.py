"""Memory and CPU time of process trees, measured from outside (Linux's /proc), and calls in fresh processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import psutil

Result = TypeVar("Result")


class Memory(NamedTuple):
    """Bytes of memory of a process tree.

    Attributes:
        rss: resident size; a page counts once for each process that has it.
        pss: proportional size; a page counts once in all.
        anon: the anonymous part of ``rss``. The rest are pages of mapped files: they belong to the page cache, and the
            system drops them when memory is short.
    """

    rss: int
    pss: int
    anon: int

    def __or__(self, other: Memory) -> Memory:
        """Return the larger value of each field."""
        return Memory(*(max(a, b) for a, b in zip(self, other, strict=True)))


def memory_of(pid: int) -> Memory:
    """Return the present memory of a process and its descendants."""
    found = [_memory_of_one(member.pid) for member in _tree(pid)]
    return Memory(*(sum(column) for column in zip(*found, strict=True))) if found else Memory(0, 0, 0)


def cpu_seconds() -> float:
    """Return the user and system time so far of this process and its descendants, ended ones included."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    living = sum(sum(child.cpu_times()[:2]) for child in psutil.Process().children(recursive=True))
    return time.process_time() + ended.ru_utime + ended.ru_stime + living


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _memory_of_one(pid: int) -> Memory:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:  # the process has ended
        return Memory(0, 0, 0)
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return Memory(*(kib.get(name, 0) * 1024 for name in ("Rss", "Pss", "Anonymous")))


class Peak:
    """Peak memory of a process tree over a ``with`` block, sampled every ``every_s`` seconds.

    After ``with Peak(pid) as peak: ...``, ``peak.memory`` holds the largest values seen.
    """

    def __init__(self, pid: int, every_s: float = 0.05) -> None:
        self.memory = Memory(0, 0, 0)
        self._pid, self._every_s, self._done = pid, every_s, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._done.wait(self._every_s):
            self.memory |= memory_of(self._pid)

    def __enter__(self) -> Self:
        self.memory |= memory_of(self._pid)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()
        self.memory |= memory_of(self._pid)


class Call(NamedTuple):
    """The result of a call in a fresh process, and the peak memory of the process' tree."""

    result: Any
    peak: Memory


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Call:
    """Call a module's function in a process that has done nothing else.

    Raises:
        RuntimeError: the process ended without an answer; its messages are on standard error.
    """
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    assert process.pid
    with Peak(process.pid) as peak:
        try:
            result = mine.recv()
        except EOFError:
            process.join()
            raise RuntimeError(f"{function.__name__}{arguments} ended with code {process.exitcode}") from None
    mine.close()
    process.join()
    return Call(result, peak.memory)


def _answer(pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    result = function(*arguments)
    pipe.send(result)
    with contextlib.suppress(EOFError):
        pipe.recv()  # stay until the caller has measured this process
