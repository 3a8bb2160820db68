"""Who writes shards: this process, or others of this machine. ``cluster.build`` has those of other machines."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from ssl_dist.errors import ConfigError
from ssl_dist.store.building.shard_writer import Piece, Written, finished, write_shard

Writers = Callable[[Iterator[Piece]], Generator[Written, None, None]]
"""Pieces -> what ``write_piece`` makes of each, in their order, with a bounded number in memory. Closed, it stops
writing. Raises what ``write_shard`` does, of the first piece that fails."""

_WATCH_S = 0.1  # between two looks at whether the parent lives


def write_piece(piece: Piece) -> Written:
    """A shard that is there, or else written now. Raises what ``write_shard`` does."""
    shard = finished(piece.path, len(piece.members))
    return Written(piece.path, shard, None) if shard else write_shard(piece)


def writers_of(workers: int | Writers | None) -> Writers:
    """So many processes of this machine (None: one a core; 1 is this one), or those who were given.

    Raises:
        ConfigError: a number less than 1.
    """
    if callable(workers):
        return workers
    number = (os.cpu_count() or 1) if workers is None else workers
    if number < 1:
        raise ConfigError(f"workers {number}: at least 1 writer process is needed")
    return _here if number == 1 else functools.partial(_by_pool, number=number)


def _here(pieces: Iterator[Piece]) -> Generator[Written, None, None]:
    for piece in pieces:
        yield write_piece(piece)


def _by_pool(pieces: Iterator[Piece], number: int) -> Generator[Written, None, None]:
    """At most two pieces a process are in memory."""
    # spawn: a fork of a process that has threads (torch, Arrow) may hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(number, context, initializer=_end_with_parent, initargs=(os.getpid(),)) as pool:
        running: deque[Future[Written]] = deque()
        try:
            for piece in pieces:
                running.append(pool.submit(write_piece, piece))
                if len(running) > 2 * number:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        except BrokenProcessPool as error:
            raise OSError(str(error)) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent(parent: int) -> None:
    """In a writer: a build that is killed must not write on, where perhaps another builds by then. Nor after Ctrl-C,
    which reaches both: the build says so."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(1))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
