"""Background threads that fetch what will be needed soon, and end when everything requested has been fetched."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable

_NUM_THREADS = 4  # fetches at the same time
_JOIN_S = 10.0  # how long the end of the process waits for a thread to receive its current chunk


class Prefetcher:
    """A queue of numbers, and threads that fetch them in the order of the requests.

    Args:
        fetch: a bound method that fetches a number. It is also given an event that tells it to stop early. It returns
            False if asking again is pointless until other numbers are requested.
    """

    def __init__(self, fetch: Callable[[int, threading.Event], bool]) -> None:
        self._fetch = weakref.WeakMethod(fetch)  # weak: a store that nobody uses any more must release its shards
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._queue, self._threads = deque[int](), set[threading.Thread]()
        self._pending, self._refused = set[int](), set[int]()
        weakref.finalize(self, _end, self._stop, self._threads)

    def request(self, numbers: list[int], *, retry_refused: bool) -> None:
        """Queue the numbers that are not queued yet; those that ``fetch`` refused only if ``retry_refused``."""
        with self._lock:
            if retry_refused:
                self._refused.clear()
            known = self._pending | self._refused
            fresh = [number for number in numbers if number not in known]
            self._pending.update(fresh)
            self._queue.extend(fresh)
            for _ in range(min(len(self._queue), _NUM_THREADS - len(self._threads))):
                thread = threading.Thread(target=self._run, name="fetch-shards", daemon=True)
                self._threads.add(thread)
                thread.start()

    def _run(self) -> None:
        try:
            while (number := self._next()) is not None:
                self._fetch_one(number)
        finally:  # even after an unforeseen exception, so that ``request`` starts another thread instead
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _next(self) -> int | None:
        """Take a number off the queue; None ends this thread, which ``request`` then no longer counts."""
        with self._lock:
            if self._queue and not self._stop.is_set():
                return self._queue.popleft()
            self._threads.discard(threading.current_thread())
            return None

    def _fetch_one(self, number: int) -> None:
        fetch, done = self._fetch(), False
        try:
            done = fetch is not None and fetch(number, self._stop)
        finally:
            del fetch  # it holds a strong reference to the store
            with self._lock:
                self._pending.discard(number)
                if not done:
                    self._refused.add(number)


def _end(stop: threading.Event, threads: set[threading.Thread]) -> None:
    """Stop the threads, also when the process ends: a thread still inside Arrow's code would crash it."""
    stop.set()
    for thread in list(threads):
        if thread is not threading.current_thread():
            thread.join(timeout=_JOIN_S)
