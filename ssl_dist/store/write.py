"""Build a store: members of a source -> decoded, resized, checksummed Arrow shards -> manifest.

The source is cut into chunks of SHARD_FILES files (or CHUNK_BYTES), one shard each, so the shards do not depend on the
number of writer processes. The manifest is written when every shard is on disk; a build that dies leaves no store.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import logging
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ssl_dist.errors import ConfigError, SourceError, StoreError, Unreadable
from ssl_dist.store.decode import decode, describe_resize, resize
from ssl_dist.store.schema import BATCH_ROWS, MANIFEST, BatchEntry, Manifest, ShardEntry, checksum, shard_schema
from ssl_dist.store.sources import NO_LABEL, File, Member, Source, list_source

SHARD_FILES = 16 * BATCH_ROWS
CHUNK_BYTES = 256 << 20  # of a tar's files, which wait in memory: a chunk ends there, if it comes first
_BUILDING = ".building"  # locked by the process that builds; stays where it died
_MAGIC = b"ARROW1\0\0"  # opens an Arrow IPC file; the schema's message follows

log = logging.getLogger(__name__)
Progress = Callable[[int, int], None]  # files done, files in all


@dataclass
class _Shard:
    """What a writer process hands back: the entry (None if no image was readable) and the files it left out."""

    files: int
    entry: ShardEntry | None
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (key, reason)


def build(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    split: str = "train",
    size_px: int | None = None,
    encoding: str = "raw",
    workers: int | None = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Build a store.

    Args:
        source: what ``list_source`` takes; tars are streamed, never extracted.
        destination: a folder that does not exist yet, is empty, or holds an unfinished build.
        split: a name kept in the manifest.
        size_px: side of the square images (see ``decode``); None: all images have one size already, which is kept.
        encoding: "raw", uint8 pixels.
        workers: writer processes; None: one a core.
        strict: stop at the first file that is not a readable image instead of leaving it out.
        progress: called with (files done, files in all).

    Returns:
        The manifest, with the number of files left out in ``skipped``.

    Raises:
        SourceError: no readable image, or (strict) one that cannot be read, or sizes differ and size_px is None.
        StoreError: the destination holds a store already, or cannot be written.
        ConfigError: an argument out of range.
    """
    if encoding != "raw":
        raise ConfigError(f"encoding {encoding!r}: this version writes 'raw'")
    if size_px is not None and size_px < 1:
        raise ConfigError(f"size_px {size_px}: it is a number of pixels, 1 or more")
    if workers is not None and workers < 1:
        raise ConfigError(f"workers {workers}: at least 1 writer process is needed")
    listed, store = list_source(source), Path(destination)
    for key in listed.foreign:
        _leave_out(key, "not an image file", strict)
    shape = _image_shape(listed, size_px)
    with _claimed(store):
        return _build(listed, store, split, shape, size_px, workers or os.cpu_count() or 1, strict, progress)


def _build(
    listed: Source,
    store: Path,
    split: str,
    shape: tuple[int, int, int],
    size_px: int | None,
    workers: int,
    strict: bool,
    progress: Progress | None,
) -> Manifest:
    shards: list[ShardEntry] = []
    skipped, done = len(listed.foreign), 0
    for shard in _write_all(listed, store, shape, size_px, workers):
        for key, reason in shard.skipped:
            _leave_out(key, reason, strict)
        skipped, done = skipped + len(shard.skipped), done + shard.files
        shards += [shard.entry] if shard.entry else []
        if progress:
            progress(done, listed.total)
    if not shards:
        raise SourceError(f"{listed.name}: none of its {listed.total} image files could be read")
    manifest = Manifest(
        split=split,
        encoding="raw",
        image_shape=shape,
        resize=describe_resize(size_px),
        class_names=listed.class_names,
        rows=sum(shard.rows for shard in shards),
        bytes=sum(shard.bytes for shard in shards),
        skipped=skipped,
        shards=tuple(shards),
    )
    try:
        manifest.write(store)
    except OSError as error:
        raise _unwritable(store, error) from None
    return manifest


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
            height, width, _ = _pixels(member, None).shape
        except (Unreadable, OSError):
            continue
        return height, width, 3
    raise SourceError(f"{listed.name}: none of its {listed.total} image files could be read")


@contextlib.contextmanager
def _claimed(store: Path) -> Iterator[None]:
    """The destination, ready and this process' own; what an unfinished build left there is removed."""
    try:
        store.mkdir(parents=True, exist_ok=True)
        if (store / MANIFEST).exists():
            raise StoreError(f"{store} holds a store already: choose another destination, or delete it first")
        if any(store.iterdir()) and not (store / _BUILDING).exists():
            raise StoreError(f"{store} is not empty and not an unfinished store: choose another destination")
        with (store / _BUILDING).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in store.glob("shard-*.arrow"):
                path.unlink()
            yield
            (store / _BUILDING).unlink()
    except BlockingIOError:
        raise StoreError(f"{store} is being built by another process: wait for it, or choose another") from None
    except OSError as error:
        raise _unwritable(store, error) from None


def _pixels(member: Member, size_px: int | None) -> np.ndarray:
    """uint8 [H, W, 3]."""
    content = member.content
    return resize(content, size_px) if isinstance(content, np.ndarray) else decode(_bytes(content), size_px)


def _bytes(content: bytes | File) -> bytes:
    return content if isinstance(content, bytes) else content.read()


def _write_all(
    listed: Source, store: Path, shape: tuple[int, int, int], size_px: int | None, workers: int
) -> Iterator[_Shard]:
    """Shards in order, written by a pool, or here by one worker; at most two chunks a process are in memory."""
    jobs = (
        (chunk, store / f"shard-{number:05d}.arrow", shape, size_px) for number, chunk in enumerate(_chunks(listed))
    )
    try:
        if workers == 1:
            yield from itertools.starmap(_write_shard, jobs)
        else:
            yield from _by_pool(jobs, workers)
    except (OSError, BrokenProcessPool) as error:
        raise _unwritable(store, error) from None


def _by_pool(jobs: Iterator[tuple[Any, ...]], workers: int) -> Iterator[_Shard]:
    # spawn: a fork of a process that has threads (torch, Arrow) may hang
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        running: deque[Future[_Shard]] = deque()
        try:
            for job in jobs:
                running.append(pool.submit(_write_shard, *job))
                if len(running) > 2 * workers:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


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


def _write_shard(chunk: list[Member], path: Path, shape: tuple[int, int, int], size_px: int | None) -> _Shard:
    """Decode one chunk and write its shard; runs in a writer process."""
    shard = _Shard(files=len(chunk), entry=None)
    schema, batches, rows = shard_schema("raw", shape), [], _Rows(shape)
    with path.open("wb") as file:
        sink = pa.PythonFile(file, mode="w")
        writer = pa.ipc.new_file(sink, schema)
        for member in chunk:
            try:
                image = _pixels(member, size_px)
            except (Unreadable, OSError) as error:
                shard.skipped.append((member.key, str(error)))
                continue
            if image.shape != shape:
                raise SourceError(
                    f"{member.key} is {image.shape[1]} x {image.shape[0]} px where the images before it are"
                    f" {shape[1]} x {shape[0]}: give the store one size with --size-px {min(shape[:2])}"
                )
            rows.append(image, member)
            if len(rows) == BATCH_ROWS:
                batches.append(_flush(writer, sink, schema, rows))
                rows = _Rows(shape)
        if len(rows):
            batches.append(_flush(writer, sink, schema, rows))
        writer.close()
        file.flush()
        os.fsync(file.fileno())
    if not batches:
        path.unlink()
        return shard
    content: np.ndarray = np.memmap(path, dtype=np.uint8, mode="r")
    sealed = tuple(
        BatchEntry(rows=n, offset=start, length=stop - start, xxh3=checksum(content[start:stop]))
        for n, start, stop in batches
    )
    whole = checksum(content)
    total = sum(batch.rows for batch in sealed)
    shard.entry = ShardEntry(file=path.name, rows=total, bytes=content.size, xxh3=whole, batches=sealed)
    return shard


class _Rows:
    """Rows of the record batch being filled."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.images: list[np.ndarray] = []
        self.labels: list[int | None] = []
        self.keys: list[str] = []
        self.shape = shape

    def __len__(self) -> int:
        return len(self.images)

    def append(self, image: np.ndarray, member: Member) -> None:
        self.images.append(image)
        self.labels.append(None if member.label == NO_LABEL else member.label)
        self.keys.append(member.key.encode(errors="replace").decode(errors="replace"))

    def arrays(self) -> list[pa.Array]:
        images = pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack(self.images))
        return [images, pa.array(self.labels, pa.int32()), pa.array(self.keys, pa.string())]


def _flush(
    writer: pa.RecordBatchFileWriter, sink: pa.PythonFile, schema: pa.Schema, rows: _Rows
) -> tuple[int, int, int]:
    """Write one record batch; returns (rows, first byte, byte after the last)."""
    # the first write puts the file's header before the batch
    start = sink.tell() or len(_MAGIC) + schema.serialize().size
    writer.write_batch(pa.RecordBatch.from_arrays(rows.arrays(), schema=schema))
    return len(rows), start, sink.tell()
