"""The processes that write shards: this one, or a pool on this machine (``cluster.build`` uses a Ray cluster)."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event

from ssl_dist.errors import ConfigError
from ssl_dist.store.building.shard_writer import ShardJob, WrittenShard, read_summary, write_shard

Writers = Callable[[Iterator[ShardJob]], Generator[WrittenShard, None, None]]
"""A function that yields the result of each job, in the order of the jobs, with a bounded number of jobs in memory.
Closing the generator stops the writing. It raises what ``write_shard`` raised for the first job that failed."""

_POLL_S = 0.1  # how often a writer looks whether its parent lives


def write_missing_shard(job: ShardJob) -> WrittenShard:
    """Write a shard unless it is complete on disk; raise what ``write_shard`` raises."""
    summary = read_summary(job.path, len(job.members))
    return WrittenShard(job.path, summary, None) if summary else write_shard(job)


def make_writers(workers: int | Writers | None) -> Writers:
    """Return writers that use this many processes (None: one a core; 1: this process), or the given ones.

    Raises:
        ConfigError: the number is less than 1.
    """
    if callable(workers):
        return workers
    number = (os.cpu_count() or 1) if workers is None else workers
    if number < 1:
        raise ConfigError(f"workers {number}: at least 1 writer process is needed")
    return _write_here if number == 1 else functools.partial(_write_in_pool, num_processes=number)


def _write_here(jobs: Iterator[ShardJob]) -> Generator[WrittenShard, None, None]:
    for job in jobs:
        yield write_missing_shard(job)


def _write_in_pool(jobs: Iterator[ShardJob], num_processes: int) -> Generator[WrittenShard, None, None]:
    """Write in other processes, with at most two jobs a process in memory."""
    # spawn: forking a process that has threads (torch's, Arrow's) may hang
    context = multiprocessing.get_context("spawn")
    stopped = context.Event()
    known = (os.getpid(), stopped)
    with ProcessPoolExecutor(num_processes, context, initializer=_end_with_parent, initargs=known) as pool:
        running: deque[Future[WrittenShard]] = deque()
        try:
            for job in jobs:
                with _interrupts_blocked():
                    running.append(pool.submit(write_missing_shard, job))
                if len(running) > 2 * num_processes:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        except BrokenProcessPool as error:
            raise OSError(str(error)) from None
        except BaseException:
            stopped.set()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block SIGINT in this thread and in the processes that it starts meanwhile, which keep it blocked.

    Ctrl-C reaches the build and its writers. Only the build may answer, since it could take a writer's end for a fault.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent(parent: int, stopped: Event) -> None:
    """Let this writer end when its build ends or is stopped: another build may write to the same folder by then."""

    def watch() -> None:
        while os.getppid() == parent and not stopped.wait(_POLL_S):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
