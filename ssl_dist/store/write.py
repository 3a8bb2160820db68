"""Make a store: members of a source -> shards (see ``shard.py``) -> manifest.

The source is cut into chunks of SHARD_FILES files (or CHUNK_BYTES), one shard each, so the shards do not depend on the
number of writer processes. The manifest is written when every shard is on disk: a build that dies leaves no store, and
goes on after the shards it has when it is called again; an ``append`` that dies leaves the store as it was.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import logging
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, get_args

from ssl_dist.errors import ConfigError, SourceError, StoreError, Unreadable
from ssl_dist.store.decode import describe_resize
from ssl_dist.store.schema import BATCH_ROWS, MANIFEST, Encoding, Manifest, ShardEntry
from ssl_dist.store.shard import Form, Shard, finished, pixels, write_shard
from ssl_dist.store.sources import Member, Share, Source, list_source, of_stores

SHARD_FILES = 16 * BATCH_ROWS
CHUNK_BYTES = 256 << 20  # of members that wait in memory: a chunk ends there, if it comes first
_BUILDING = ".building"  # locked by the process that builds, and says what it builds; stays where it died

log = logging.getLogger(__name__)
Progress = Callable[[int, int], None]  # images done, images in all


def build(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    split: str = "train",
    size_px: int | None = None,
    encoding: str = "raw",
    share: Share = (0, 1),
    workers: int | None = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Build a store.

    Args:
        source: what ``list_source`` takes; tars are streamed, never extracted.
        destination: a folder that does not exist yet, is empty, or holds an unfinished build, which goes on.
        split: a name kept in the manifest.
        size_px: side of the square images (see ``decode``); None: all images have one size already, which is kept.
        encoding: "raw", uint8 pixels, or "jpeg", a sixth of that: JPEG files of the right size are kept as they are,
            other images are encoded with quality 90.
        share: keep the images whose key, hashed to a number in [0, 1), lies in [low, high).
        workers: writer processes; None: one a core.
        strict: stop at the first file that is not a readable image instead of leaving it out.
        progress: called with (images done, images in all).

    Returns:
        The manifest, with the number of files left out in ``skipped``.

    Raises:
        SourceError: no readable image, or (strict) one that cannot be read, or sizes differ and size_px is None.
        StoreError: the destination holds a store already, or cannot be written.
        ConfigError: an argument out of range.
    """
    if not 0 <= share[0] < share[1] <= 1:
        raise ConfigError(f"share {share}: two numbers, 0 <= low < high <= 1")
    return _build(
        list_source(source).part(share), Path(destination), split, size_px, encoding, workers, strict, progress
    )


def merge(
    stores: Sequence[str | os.PathLike[str]],
    destination: str | os.PathLike[str],
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """A new store of all images of several, one after the other; classes of one name are one class.

    Raises:
        StoreError: one is no store or damaged, their images differ in size or encoding, or as ``build``.
    """
    paths = [Path(store) for store in stores]
    first = Manifest.read(paths[0])
    listed = of_stores(", ".join(map(str, paths)), paths)
    return _build(listed, Path(destination), first.split, None, first.encoding, workers, True, progress)


def append(
    source: str | os.PathLike[str],
    store: str | os.PathLike[str],
    *,
    workers: int | None = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Add a source's images to a store, after those it has: their sample ids and labels stay as they are.

    Readers see the old store or the new one. Classes of a name that the store has are those; others come after them.

    Raises:
        As ``build``.
    """
    place, listed = Path(store), list_source(source)
    old = Manifest.read(place)
    side = None if old.resize == describe_resize(None) else old.image_shape[0]
    form = Form(encoding=old.encoding, image_shape=old.image_shape, size_px=side)
    with _claimed(place, _identity(listed, form, len(old.shards)), old):
        names = (*old.class_names, *(name for name in listed.class_names if name not in old.class_names))
        shards, skipped = _write(listed.renamed(names), place, form, old, workers, strict, progress)
        about = {**old.model_dump(exclude={"shards"}), "class_names": names, "skipped": old.skipped + skipped}
        return _publish(place, about, [*old.shards, *shards])


def _build(
    listed: Source,
    store: Path,
    split: str,
    size_px: int | None,
    encoding: str,
    workers: int | None,
    strict: bool,
    progress: Progress | None,
) -> Manifest:
    if encoding not in get_args(Encoding):
        raise ConfigError(f"encoding {encoding!r}: it is one of {', '.join(get_args(Encoding))}")
    if size_px is not None and size_px < 1:
        raise ConfigError(f"size_px {size_px}: it is a number of pixels, 1 or more")
    form = Form.model_validate({"encoding": encoding, "image_shape": _image_shape(listed, size_px), "size_px": size_px})
    with _claimed(store, _identity(listed, form, split), None):
        shards, skipped = _write(listed, store, form, None, workers, strict, progress)
        if not shards:
            raise SourceError(f"{listed.name}: none of its {listed.total} image files could be read")
        about = {
            "split": split,
            "encoding": form.encoding,
            "image_shape": form.image_shape,
            "resize": describe_resize(size_px),
            "class_names": listed.class_names,
            "skipped": skipped,
        }
        return _publish(store, about, shards)


def _publish(store: Path, about: dict[str, Any], shards: Sequence[ShardEntry]) -> Manifest:
    """Put the manifest of these shards in place."""
    counts = {"rows": sum(shard.rows for shard in shards), "bytes": sum(shard.bytes for shard in shards)}
    whole = Manifest.model_validate({**about, **counts, "shards": tuple(shards)})
    try:
        whole.write(store)
    except OSError as error:
        raise _unwritable(store, error) from None
    return whole


def _unwritable(store: Path, error: Exception) -> StoreError:
    return StoreError(f"cannot write a store at {store}: {getattr(error, 'strerror', None) or error}")


def _leave_out(key: str, reason: str, strict: bool) -> None:
    if strict:
        raise SourceError(f"{key}: {reason} (--strict: nothing is left out)")
    log.warning("skipped %s: %s", key, reason)


def _image_shape(listed: Source, size_px: int | None) -> tuple[int, int, int]:
    """(H, W, 3) of the store: what was asked for, or the size of the first image that can be read."""
    if size_px is not None:
        return size_px, size_px, 3
    for member in listed.members():
        try:
            height, width, _ = pixels(member, None).shape
        except (Unreadable, OSError):
            continue
        return height, width, 3
    raise SourceError(f"{listed.name}: none of its {listed.total} image files could be read")


def _identity(listed: Source, form: Form, *others: object) -> str:
    """Of what is being built: an unfinished build of anything else is not gone on with."""
    return json.dumps([listed.fingerprint, listed.class_names, form.model_dump(), BATCH_ROWS, SHARD_FILES, *others])


@contextlib.contextmanager
def _claimed(store: Path, identity: str, old: Manifest | None) -> Iterator[None]:
    """The destination, ready and this process' own. Shards that an unfinished build of the same left there stay; those
    of another, which no manifest names, are removed."""
    try:
        store.mkdir(parents=True, exist_ok=True)
        if old is None and (store / MANIFEST).exists():
            raise StoreError(f"{store} holds a store already: choose another destination, or delete it first")
        if old is None and any(store.iterdir()) and not (store / _BUILDING).exists():
            raise StoreError(f"{store} is not empty and not an unfinished store: choose another destination")
        with (store / _BUILDING).open("a+", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.seek(0)
            if lock.read() != identity:
                _remove_unnamed(store, old)
                lock.truncate(0)
                lock.write(identity)
                lock.flush()
            yield
            _remove_notes(store)
            (store / _BUILDING).unlink()
    except BlockingIOError:
        raise StoreError(f"{store} is being built by another process: wait for it, or choose another") from None
    except OSError as error:
        raise _unwritable(store, error) from None


def _remove_unnamed(store: Path, old: Manifest | None) -> None:
    named = {shard.file for shard in old.shards} if old else set()
    for path in store.glob("shard-*.arrow"):
        if path.name not in named:
            path.unlink()
    _remove_notes(store)


def _remove_notes(store: Path) -> None:
    for path in itertools.chain(store.glob(".shard-*.json"), store.glob(".shard-*.tmp")):
        path.unlink()


def _write(
    listed: Source,
    store: Path,
    form: Form,
    old: Manifest | None,
    workers: int | None,
    strict: bool,
    progress: Progress | None,
) -> tuple[list[ShardEntry], int]:
    """All shards of a source, and how many of its files were left out."""
    if workers is not None and workers < 1:
        raise ConfigError(f"workers {workers}: at least 1 writer process is needed")
    for key in listed.foreign:
        _leave_out(key, "not an image file", strict)
    entries, skipped, done = list[ShardEntry](), len(listed.foreign), 0
    number = 1 + max(int(shard.file[6:-6]) for shard in old.shards) if old else 0
    paths = (store / f"shard-{n:05d}.arrow" for n in itertools.count(number))
    for shard in _shards(zip(_chunks(listed), paths, strict=False), store, form, workers or os.cpu_count() or 1):
        for key, reason in shard.skipped:
            _leave_out(key, reason, strict)
        skipped, done = skipped + len(shard.skipped), done + shard.members
        entries += [shard.entry] if shard.entry else []
        if progress:
            progress(done, max(done, listed.total))
    if progress:
        progress(done, done)
    return entries, skipped


def _shards(jobs: Iterator[tuple[list[Member], Path]], store: Path, form: Form, workers: int) -> Iterator[Shard]:
    """Shards in order: those there are, and those that a pool, or here one worker, writes."""
    try:
        if workers == 1:
            for chunk, path in jobs:
                yield _finish(chunk, path, form)
        else:
            yield from _by_pool(jobs, form, workers)
    except (OSError, BrokenProcessPool) as error:
        raise _unwritable(store, error) from None


def _by_pool(jobs: Iterator[tuple[list[Member], Path]], form: Form, workers: int) -> Iterator[Shard]:
    """At most two chunks a process are in memory."""
    # spawn: a fork of a process that has threads (torch, Arrow) may hang
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        running: deque[Future[Shard]] = deque()
        try:
            for chunk, path in jobs:
                running.append(pool.submit(_finish, chunk, path, form))
                if len(running) > 2 * workers:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _finish(chunk: list[Member], path: Path, form: Form) -> Shard:
    return finished(path, len(chunk)) or write_shard(chunk, path, form)


def _chunks(listed: Source) -> Iterator[list[Member]]:
    chunk: list[Member] = []
    size = 0
    for member in listed.members():
        chunk.append(member)
        size += member.held_bytes
        if len(chunk) == SHARD_FILES or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
