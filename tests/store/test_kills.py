"""Builds and appends whose process group is killed at many different moments, while another process reads the store."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from ssl_dist import store
from ssl_dist.errors import StoreError
from ssl_dist.store import ImageStore
from ssl_dist.store.building import builder
from tests.conftest import write_images
from tests.store.test_growing import files_of

_CHUNK, _IMAGES = 4, 40  # ten shards
PROCESSES = multiprocessing.get_context("forkserver")  # their parent has no threads
PROCESSES.set_forkserver_preload(["ssl_dist.store", "tests.conftest"])


def _write(source: Path, path: Path, growing: bool, workers: int) -> None:
    """Build or append in a new process group, with a disk that is made slow."""
    os.setsid()
    builder.SHARD_IMAGES, builder.BATCH_ROWS = _CHUNK, 2
    for name in ("fsync", "replace", "unlink"):
        setattr(os, name, _slowly(getattr(os, name)))
    if growing:
        store.append(source, path, workers=workers, allow_duplicates=True)
    else:
        store.build(source, path, workers=workers)


def _slowly(call: Callable[..., object]) -> Callable[..., object]:
    def slow(*arguments: object, **more: object) -> object:
        time.sleep(0.001)
        result = call(*arguments, **more)
        time.sleep(0.001)
        return result

    return slow


ENDED = "after its end"
Content = bytes | None  # the pixels and labels of a store; None: there is no store


def content_of(path: Path) -> Content:
    """Return what a reader finds; fail if the store is damaged."""
    try:
        opened = ImageStore(path, verify="full")
    except StoreError as error:
        if "is not a store" in str(error):
            return None
        raise
    assert opened.verify() == []
    return opened.gather(np.arange(len(opened))).tobytes() + opened.labels.tobytes()


class Stores(NamedTuple):
    """The images, and the results of an undisturbed build of the first half and append of the rest."""

    first: Path
    rest: Path
    built: dict[str, bytes]
    grown: dict[str, bytes]
    contents: list[Content]  # no store, the built one, the grown one


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    folder = tmp_path_factory.mktemp("kills")
    for name, seed in (("first", 0), ("rest", 1)):
        write_images(folder / name, num_classes=2, per_class=_IMAGES // 2, size_px=64, seed=seed)
    found, contents = [], [None]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(builder, "SHARD_IMAGES", _CHUNK)
        patched.setattr(builder, "BATCH_ROWS", 2)
        for make, name in ((store.build, "first"), (store.append, "rest")):
            make(folder / name, folder / "s", workers=1)
            found.append(files_of(folder / "s"))
            contents.append(content_of(folder / "s"))
    return Stores(folder / "first", folder / "rest", *found, contents)


def _read(path: Path, contents: list[Content], pipe: Connection) -> None:
    """Read a store until a message comes; send each new content, at last how often each was found, and any fault."""
    seen, last = Counter[int](), 0
    try:
        while not pipe.poll():
            if (content := content_of(path)) is None:
                time.sleep(0.001)
            assert content in contents
            now = contents.index(content)
            assert now >= last, f"content {now} after {last}"
            seen[now], last = seen[now] + 1, now
            if seen[now] == 1:
                pipe.send(now)
    except BaseException as error:
        pipe.send((seen, repr(error)))
        raise
    pipe.send((seen, None))


@contextlib.contextmanager
def reading(path: Path, contents: list[Content], seen: Counter[int]) -> Iterator[Callable[[int], None]]:
    """Read the store in another process, which must find only these contents, and never an older one after a newer.

    Yields:
        A function that waits until this content has been found.
    """
    ours, theirs = PROCESSES.Pipe()
    reader = PROCESSES.Process(target=_read, args=(path, contents, theirs), daemon=True)
    reader.start()

    def wait_for(content: int) -> None:
        assert ours.recv() == content

    yield wait_for
    ours.send("stop")
    found, fault = ours.recv()
    reader.join()
    assert fault is None
    seen.update(found)


def moment(path: Path, chance: random.Random) -> Callable[[], bool]:
    """Choose what a kill waits for: nothing, a shard being written, more shards, the last ones, or the manifest."""
    before = len(list(path.glob(".shard-*.json")))
    left = _IMAGES // _CHUNK - before
    wanted = chance.choice(["any", "writing", "shards", "shards", "last", "manifest"])
    if wanted == "any":
        return lambda: True
    if wanted == "writing":
        return lambda: any(path.glob(".shard-*.tmp"))
    if wanted == "manifest":
        inode = _inode(path / "manifest.json")
        return lambda: any(path.glob(".manifest.json.*.tmp")) or _inode(path / "manifest.json") != inode
    more = left if wanted == "last" else chance.randint(1, max(1, left // 2))
    return lambda: len(list(path.glob(".shard-*.json"))) >= before + more


def _inode(path: Path) -> int:
    return path.stat().st_ino if path.exists() else 0


def where(path: Path, inode: int, alive: bool) -> str:
    """Tell from the files that a killed call left how far it had got."""
    if not alive:
        return ENDED
    if not (path / ".building").exists():
        return "before its first file" if _inode(path / "manifest.json") == inode else "after the lock's removal"
    if _inode(path / "manifest.json") != inode:
        return "after the manifest's renaming"
    if any(path.glob(".manifest.json.*.tmp")):
        return "while the manifest was written"
    temporary = [file.name for file in path.glob(".shard-*.tmp")]
    if any(".json." not in name for name in temporary):
        return "while a shard was written"
    summaries = len(list(path.glob(".shard-*.json")))
    between = temporary or 0 < summaries < _IMAGES // _CHUNK
    return "between shards" if between else "before the first or after the last shard"


def kill(path: Path, source: Path, growing: bool, workers: int, chance: random.Random) -> str:
    """Start a build or an append and kill it at some moment; return how far it had got."""
    due, inode, pause = moment(path, chance), _inode(path / "manifest.json"), chance.choice([0, 0, 0.001, 0.005])
    if pause == 0 and chance.random() < 0.5:
        pause = chance.random() * (0.1 if workers == 1 else 1.5)
    caller = PROCESSES.Process(target=_write, args=(source, path, growing, workers))
    caller.start()
    while caller.is_alive() and not due():
        time.sleep(0.0002)
    time.sleep(pause)
    assert caller.pid
    try:
        os.killpg(caller.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has no group yet, or is gone
        with contextlib.suppress(ProcessLookupError):
            os.kill(caller.pid, signal.SIGKILL)
    caller.join()
    assert caller.exitcode in (0, -signal.SIGKILL)
    return where(path, inode, caller.exitcode != 0)


def named(path: Path) -> dict[str, int]:
    """Return the inodes of the finished shards, which a later call keeps."""
    return {summary.name: (path / f"{summary.stem[1:]}.arrow").stat().st_ino for summary in path.glob(".shard-*.json")}


def kills(stores: Stores, folder: Path, number: int, seed: int) -> tuple[Counter[str], Counter[int]]:
    """Build and extend stores with calls that are killed one after the other, until there were this many kills.

    Returns:
        The number of kills at each point of the work, and how often the reader found each content.
    """
    chance, landed, seen = random.Random(seed), Counter[str](), Counter[int]()
    rounds = itertools.count()
    while landed.total() < number:
        path = folder / str(next(rounds))
        with reading(path, stores.contents, seen) as wait_for:
            wait_for(0)
            for growing, source, made in ((False, stores.first, stores.built), (True, stores.rest, stores.grown)):
                old, kept = _inode(path / "manifest.json"), dict[str, int]()
                while _inode(path / "manifest.json") == old or (path / ".building").exists():
                    spot = kill(path, source, growing, chance.choice([1, 1, 2]), chance)
                    landed.update([f"{'append' if growing else 'build'} {spot}"] if spot != ENDED else [])
                    if _inode(path / "manifest.json") == old:
                        assert named(path).items() >= kept.items(), "each call keeps the shards that are finished"
                        kept = named(path)
                assert files_of(path) == made
                wait_for(1 + growing)
        shutil.rmtree(path)
    return landed, seen


def test_readers_see_the_old_or_the_new_store_at_a_few_kills(stores: Stores, tmp_path: Path) -> None:
    landed, seen = kills(stores, tmp_path, 2, seed=1)
    assert landed.total() >= 2
    assert set(seen) == {0, 1, 2}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_readers_see_the_old_or_the_new_store_at_200_kills(stores: Stores, tmp_path: Path) -> None:
    began = time.monotonic()
    landed, seen = kills(stores, tmp_path, 200, seed=0)
    print(f"{landed.total()} kills in {time.monotonic() - began:.0f} s, seen by a reader: {seen}")
    for spot, number in sorted(landed.items()):
        print(f"{number:4d} {spot}")
    spots = ("while a shard was written", "between shards", "while the manifest was written", "the manifest's renaming")
    for spot in spots:
        for what in ("build", "append"):
            assert any(key.startswith(what) and key.endswith(spot) for key in landed), (what, spot)
