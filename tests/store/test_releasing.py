"""Releasing the shards of a remote store: at once after a pass over it, and safely while other threads read."""

from __future__ import annotations

import io
import mmap
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_dist import store
from ssl_dist.errors import ConfigError
from ssl_dist.evaluate import extract
from ssl_dist.store import ImageStore, shard_reader
from ssl_dist.store.remote import fetcher
from ssl_dist.store.remote.prefetch import Prefetcher
from ssl_dist.store.shard_reader import ShardReader, local_opener
from tests.helpers import small_config
from tests.store.conftest import ROWS
from tests.store.held import wait_until


def cached(here: Path, cache_path: Path, shards: float) -> ImageStore:
    """Open the store through a cache with room for this many shards."""
    largest = max(entry.bytes for entry in store.Manifest.read(here).shards)
    return ImageStore(f"file://{here}", cache=cache_path, cache_gb=largest * shards / 1e9)


@pytest.mark.parametrize(
    "passes",
    [
        lambda opened, here: opened.labels,
        lambda opened, here: deque(opened.rows(), maxlen=0),
        lambda opened, here: extract(
            torch.nn.Flatten(), opened, np.arange(51), torch.device("cpu"), small_config(here)
        ),
    ],
    ids=["labels", "rows", "features"],
)
def test_a_finished_pass_over_a_store_releases_its_room_in_the_cache(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: Callable[[ImageStore, Path], Any]
) -> None:
    monkeypatch.setattr(fetcher, "_ROOM_S", 0.2)
    opened, other = cached(here, tmp_path, 2.5), cached(here, tmp_path, 2.5)
    passes(opened, here)
    assert other.gather(np.array([0, ROWS])).shape == (2, 16, 16, 3)


def test_a_shard_released_while_it_is_being_mapped_is_not_mistaken_for_another(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, whole, reopened = cached(here, tmp_path, 9), ImageStore(here), list[io.FileIO]()
    opened.gather(np.arange(2 * ROWS))
    opened.prepare([8], [])
    mapped = mmap.mmap

    def late(descriptor: int, *arguments: Any, **more: Any) -> mmap.mmap:
        if not reopened:
            opened.prepare([7], [])
            reopened.append(io.FileIO(here / "shard-00001.arrow"))  # reuses the descriptor if it was closed
        return mapped(descriptor, *arguments, **more)

    monkeypatch.setattr(shard_reader.mmap, "mmap", late)
    assert np.array_equal(opened.labels_at(np.arange(ROWS)), whole.labels[:ROWS])
    assert np.array_equal(opened.gather(np.arange(ROWS)), whole.gather(np.arange(ROWS)))
    assert reopened


def test_waiting_for_one_shard_does_not_block_reads_of_another(here: Path) -> None:
    manifest, asked, arrived = store.Manifest.read(here), threading.Event(), threading.Event()

    def late() -> io.FileIO:
        asked.set()
        arrived.wait()
        return io.FileIO(here / manifest.shards[0].file)

    openers = (late, local_opener(here / manifest.shards[1].file))
    slow, other = (ShardReader("s", manifest.shards[n], manifest, 3, openers[n], mapped=True) for n in range(2))
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(slow.read_message, 0)
        asked.wait()
        try:
            assert other.is_intact(0, pool.submit(other.read_message, 0).result())
            assert not waiting.done()
        finally:
            arrived.set()
        assert slow.is_intact(0, waiting.result())


def test_two_threads_read_shards_that_a_third_releases(here: Path, tmp_path: Path) -> None:
    whole = ImageStore(here)
    images, labels, opened = whole.gather(np.arange(51)), whole.labels, cached(here, tmp_path, 6.1)

    def read(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(15):
            ids = random.integers(0, 51, 8)
            assert np.array_equal(opened.gather(ids), images[ids])
            assert np.array_equal(opened.labels_at(ids), labels[ids])

    def prepare(readers: list[Future[None]]) -> None:
        random = np.random.default_rng(2)
        while not all(reader.done() for reader in readers):
            order = random.permutation(9).tolist()
            opened.prepare(order[:2], order[2:4])
            time.sleep(0.001)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(3) as pool:
            readers = [pool.submit(read, seed) for seed in range(2)]
            for done in [*readers, pool.submit(prepare, readers)]:
                done.result()
    finally:
        sys.setswitchinterval(interval)


def test_threads_that_die_of_an_exception_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    ended, fetched = threading.Semaphore(0), threading.Semaphore(0)

    class Failing:
        def fetch(self, number: int, _: threading.Event) -> bool:
            if number < 8:
                ended.release()
                raise MemoryError
            fetched.release()
            return True

    failing = Failing()
    prefetcher = Prefetcher(failing.fetch)
    for number in range(8):  # twice as many as there are threads
        prefetcher.request([number], retry_refused=True)
        ended.acquire()
        wait_until(lambda: not prefetcher._threads)  # a dead thread is not counted
    prefetcher.request([8, 9], retry_refused=True)
    fetched.acquire()
    fetched.acquire()


def test_damage_of_a_remote_store_cannot_be_skipped(here: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.damaged=skip with file://.*set data\.damaged=refuse"):
        ImageStore(f"file://{here}", damaged="skip", cache=tmp_path)
