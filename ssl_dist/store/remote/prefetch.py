"""Threads that fetch what will be needed, and end when all of it is there."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable

_THREADS = 4  # shards that are fetched ahead at one time
_END_S = 10.0  # for a chunk to arrive, when the process ends


class Ahead:
    """Fetches numbers in the order in which they are wanted; ``fetch`` is a bound method, told when to stop, and says
    whether there is sense in asking it for the number again."""

    def __init__(self, fetch: Callable[[int, threading.Event], bool]) -> None:
        self._fetch = weakref.WeakMethod(fetch)  # a store that nobody uses any more lets go of its shards at once
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._queue, self._threads = deque[int](), set[threading.Thread]()
        self._pending, self._in_vain = set[int](), set[int]()
        weakref.finalize(self, _end, self._stop, self._threads)

    def want(self, numbers: list[int], *, anew: bool) -> None:
        """Those that are not on their way; ``anew``: others were wanted before, so there may be room now."""
        with self._lock:
            if anew:
                self._in_vain.clear()
            known = self._pending | self._in_vain
            fresh = [number for number in numbers if number not in known]
            self._pending.update(fresh)
            self._queue.extend(fresh)
            for _ in range(min(len(self._queue), _THREADS - len(self._threads))):
                thread = threading.Thread(target=self._run, name="fetch-shards", daemon=True)
                self._threads.add(thread)
                thread.start()

    def _run(self) -> None:
        try:
            while (number := self._next()) is not None:
                self._do(number)
        finally:  # also by an exception that nobody foresaw, so that another thread takes its place
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _next(self) -> int | None:
        """None: this thread is done, and ``want`` no longer counts on it."""
        with self._lock:
            if self._queue and not self._stop.is_set():
                return self._queue.popleft()
            self._threads.discard(threading.current_thread())
            return None

    def _do(self, number: int) -> None:
        fetch, done = self._fetch(), False
        try:
            done = fetch is not None and fetch(number, self._stop)
        finally:
            del fetch
            with self._lock:
                self._pending.discard(number)
                if not done:
                    self._in_vain.add(number)


def _end(stop: threading.Event, threads: set[threading.Thread]) -> None:
    """Also when the process ends: a thread that is then in Arrow's code would take it down with it."""
    stop.set()
    for thread in list(threads):
        if thread is not threading.current_thread():
            thread.join(timeout=_END_S)
