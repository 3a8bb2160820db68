"""The processes that write shards: this one, or a pool on this machine (``cluster.build`` uses a Ray cluster)."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from ssl_dist.errors import ConfigError
from ssl_dist.machine import num_cores
from ssl_dist.store.building.shard_writer import ShardJob, WrittenShard, read_summary, write_shard

Writers = Callable[[Iterator[ShardJob]], Generator[WrittenShard | int, None, None]]
"""A function that yields the result of each job, in the order of the jobs, with a bounded number of jobs in memory.
While the next result is not there it may yield the number of images that are done of the jobs without a result.
Closing the generator stops the writing. It raises what ``write_shard`` raised for the first job that failed."""

_POLL_S = 0.1  # how often a writer looks whether its parent lives
_REPORT_S = 0.25  # how often the number of images that are done is yielded
_images_done: Any = None  # in a process of a pool: the images that are done, of all its processes


def write_missing_shard(job: ShardJob, count: Callable[[int], None] = lambda images: None) -> WrittenShard:
    """Write a shard unless it is complete on disk; raise what ``write_shard`` raises.

    Args:
        count: called with the number of images that have been done since the last call.
    """
    if summary := read_summary(job.path, len(job.members)):
        count(summary.members)
        return WrittenShard(job.path, summary, None)
    return write_shard(job, count)


def make_writers(workers: int | Writers | None) -> Writers:
    """Return writers that use this many processes (None: one a core; 1: this process), or the given ones.

    Raises:
        ConfigError: the number is less than 1.
    """
    if callable(workers):
        return workers
    number = num_cores() if workers is None else workers
    if number < 1:
        raise ConfigError(f"workers {number}: at least 1 writer process is needed")
    return _write_here if number == 1 else functools.partial(_write_in_pool, num_processes=number)


def _write_here(jobs: Iterator[ShardJob]) -> Generator[WrittenShard, None, None]:
    for job in jobs:
        yield write_missing_shard(job)


def _write_in_pool(jobs: Iterator[ShardJob], num_processes: int) -> Generator[WrittenShard | int, None, None]:
    """Write in other processes, with at most two jobs a process in memory."""
    # spawn: forking a process that has threads (torch's, Arrow's) may hang
    context = multiprocessing.get_context("spawn")
    done, stopped = context.Value("q", 0), context.RawValue("b", 0)  # a killed writer may hold the lock of the first
    strangers = multiprocessing.active_children()
    shared = (os.getpid(), done, stopped)
    with ProcessPoolExecutor(num_processes, context, initializer=_begin_writer, initargs=shared) as pool:
        running: deque[Future[WrittenShard]] = deque()
        writers: list[Any] = []
        try:
            for job in jobs:
                with _interrupts_blocked():
                    running.append(pool.submit(_write_counted, job))
                writers = [child for child in multiprocessing.active_children() if child not in strangers]
                if len(running) > 2 * num_processes:
                    yield from _first_result(running, done)
            while running:
                yield from _first_result(running, done)
        except BrokenProcessPool:
            pool.shutdown(wait=True)
            raise OSError(f"{_how_it_ended(writers)}: call again to resume") from None
        except BaseException:
            stopped.value = True  # the writers would complete their shards first
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


def _first_result(running: deque[Future[WrittenShard]], done: Any) -> Generator[WrittenShard | int, None, None]:
    """Wait for the first of the running jobs and yield its result; meanwhile yield the number of images done."""
    while not wait([running[0]], timeout=_REPORT_S).done:
        yield done.get_obj().value  # without the lock, which a killed writer may hold
    yield running.popleft().result()


def _how_it_ended(writers: Sequence[Any]) -> str:
    """Say which signal ended the first writer; the pool ends the others with SIGTERM."""
    codes = [-writer.exitcode for writer in writers if writer.exitcode and writer.exitcode != -signal.SIGTERM]
    if not codes or codes[0] not in list(signal.Signals):
        return "a writer process ended"
    if codes[0] == signal.SIGKILL:
        return "a writer process was killed (signal 9), perhaps because memory ran out: give fewer --workers"
    return f"a writer process crashed (signal {codes[0]}, {signal.strsignal(codes[0])})"


def _write_counted(job: ShardJob) -> WrittenShard:
    def count(images: int) -> None:
        with _images_done.get_lock():
            _images_done.value += images

    return write_missing_shard(job, count)


def _begin_writer(parent: int, images_done: Any, stopped: Any) -> None:
    """Let this writer end when its build ends or is stopped: another build may write to the same folder by then."""
    global _images_done  # noqa: PLW0603 (a job that travels to another process cannot hold it)
    _images_done = images_done

    def watch() -> None:
        while os.getppid() == parent and not stopped.value:
            time.sleep(_POLL_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
