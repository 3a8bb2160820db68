"""Make a store: members of a source -> shards (see ``shard.py``) -> manifest.

The source is cut into chunks of SHARD_FILES files (or CHUNK_BYTES), one shard each, so the shards do not depend on who
writes them (see ``writers.py``). The manifest is written when every shard is on disk: a build that dies leaves no
store, and goes on after the shards it has when it is called again; an ``append`` that dies leaves the store as it was.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import xxhash

from ssl_dist.errors import ConfigError, SourceError, StoreError, Unreadable, printable
from ssl_dist.store.building.lock import Job, expect_room, locked, unfinished, unwritable
from ssl_dist.store.building.shard_writer import Form, Piece, Shard, pixels, put_in_place
from ssl_dist.store.building.sources import Member, Share, Source, list_source, of_stores
from ssl_dist.store.building.writer_pool import Writers, writers_of
from ssl_dist.store.decode import MAX_PIXELS, describe_resize
from ssl_dist.store.schema import BATCH_ROWS, MANIFEST, Encoding, Manifest, ShardEntry
from ssl_dist.uris import is_remote

SHARD_FILES = 16 * BATCH_ROWS
CHUNK_BYTES = 256 << 20  # of members that wait in memory: a chunk ends there, if it comes first

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
    keep: bool = False,
    workers: int | Writers | None = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Build a store.

    Args:
        source: what ``list_source`` takes; tars are streamed, never extracted.
        destination: a folder that does not exist yet, is empty, or holds an unfinished build, which goes on.
        split: a name kept in the manifest.
        size_px: side of the square images (see ``decode``); None: all images have one size already, which is kept.
        encoding: "raw", uint8 pixels, or "jpeg", which is smaller and slower to read: JPEG files of the right size
            are kept as they are, other images are encoded with quality 90.
        share: only the images whose key, hashed to a number in [0, 1), lies in [low, high).
        keep: a store that is there, made of the same and in the same way, will do.
        workers: writer processes; None: one a core; or others who write shards (``cluster.build``'s), elsewhere.
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
    writers = writers_of(workers)
    listed = list_source(source).part(share)
    return _build(listed, _folder(destination), split, size_px, encoding, keep, writers, strict, progress)


def merge(
    stores: Sequence[str | os.PathLike[str]],
    destination: str | os.PathLike[str],
    *,
    workers: int | Writers | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """A new store of all images of several, one after the other; classes of one name are one class.

    Raises:
        StoreError: one is no store or damaged, their images differ in size or encoding, or as ``build``.
    """
    paths = [_folder(store) for store in stores]
    if not paths:
        raise ConfigError("there is no store to merge: name one or more")
    writers = writers_of(workers)
    first = Manifest.read(paths[0])
    listed = of_stores(", ".join(map(str, paths)), paths)
    return _build(listed, _folder(destination), first.split, None, first.encoding, False, writers, True, progress)


def append(
    source: str | os.PathLike[str],
    store: str | os.PathLike[str],
    *,
    workers: int | Writers | None = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Add a source's images to a store, after those it has: their sample ids and labels stay as they are.

    Readers see the old store or the new one. Classes of a name that the store has are those; others come after them.

    Raises:
        As ``build``.
    """
    writers = writers_of(workers)
    place, listed = _folder(store), list_source(source)
    Manifest.read(place)
    with locked(place) as lock:
        old = Manifest.read(place)  # which nobody else writes now
        side = None if old.resize == describe_resize(None) else old.image_shape[0]
        form = Form(encoding=old.encoding, image_shape=old.image_shape, size_px=side, batch_rows=BATCH_ROWS)
        job = Job(what=_digest(listed, form), onto=len(old.shards))
        if (died := lock.job) and died.what == job.what and old.made_of == died.identity:
            return old  # it died when all was done but to say so
        lock.begin(job, old)
        names = (*old.class_names, *(name for name in listed.class_names if name not in old.class_names))
        shards, skipped = _write(listed.renamed(names), place, form, old, writers, strict, progress)
        if not shards:
            raise SourceError(f"{listed.name}: none of its {listed.total} image files could be read")
        about = {**old.model_dump(exclude={"shards", "xxh3"}), "class_names": names, "skipped": old.skipped + skipped}
        return _publish(place, {**about, "made_of": job.identity}, [*old.shards, *shards])


def _folder(path: str | os.PathLike[str]) -> Path:
    """Raises ConfigError for a URI."""
    if is_remote(path):
        raise ConfigError(
            f"{path}: a store is made and grows in a folder of a disk; copy it there when it is whole, {MANIFEST} last"
        )
    return Path(path)


def _build(
    listed: Source,
    store: Path,
    split: str,
    size_px: int | None,
    encoding: str,
    keep: bool,
    writers: Writers,
    strict: bool,
    progress: Progress | None,
) -> Manifest:
    if encoding not in get_args(Encoding):
        raise ConfigError(f"encoding {encoding!r}: it is one of {', '.join(get_args(Encoding))}")
    most = math.isqrt(MAX_PIXELS)
    if size_px is not None and not 1 <= size_px <= most:
        raise ConfigError(f"size_px {size_px}: it is a number of pixels from 1 to {most}")
    shape = _image_shape(listed, size_px)
    form = Form.model_validate(
        {"encoding": encoding, "image_shape": shape, "size_px": size_px, "batch_rows": BATCH_ROWS}
    )
    job = Job(what=_digest(listed, form, split), onto=0)
    if unfinished(store) != job and (there := _made(store, job, keep)):
        return there
    expect_room(store)
    with locked(store) as lock:
        # made meanwhile; or it died when all was done but to say so
        if there := _made(store, job, keep or lock.job == job):
            return there
        lock.begin(job, None)
        shards, skipped = _write(listed, store, form, None, writers, strict, progress)
        if not shards:
            raise SourceError(f"{listed.name}: none of its {listed.total} image files could be read")
        about = {
            "split": split,
            "encoding": form.encoding,
            "image_shape": form.image_shape,
            "resize": describe_resize(size_px),
            "class_names": listed.class_names,
            "skipped": skipped,
            "made_of": job.identity,
        }
        return _publish(store, about, shards)


def _made(store: Path, job: Job, keep: bool) -> Manifest | None:
    """The store that is there, if it will do."""
    if not (store / MANIFEST).exists():
        return None
    there = Manifest.read(store)
    if not (keep and there.made_of == job.identity):
        raise StoreError(f"{store} holds a store already: choose another destination, or delete it first")
    return there


def _publish(store: Path, about: dict[str, Any], shards: Sequence[ShardEntry]) -> Manifest:
    """Put the manifest of these shards in place."""
    counts = {"rows": sum(shard.rows for shard in shards), "bytes": sum(shard.bytes for shard in shards)}
    whole = Manifest.model_validate({**about, **counts, "shards": tuple(shards)}).with_checksum()
    try:
        whole.write(store)
    except OSError as error:
        raise unwritable(store, error) from None
    return whole


def _leave_out(key: str, reason: str, strict: bool) -> None:
    if strict:
        raise SourceError(f"{key}: {reason} (--strict: nothing is left out)")
    log.warning("skipped %s: %s", printable(key), printable(reason))


def _image_shape(listed: Source, size_px: int | None) -> tuple[int, int, int]:
    """(H, W, 3) of the store: what was asked for, or the size of the first image that can be read."""
    if size_px is not None:
        return size_px, size_px, 3
    for member in listed.members():
        try:
            height, width, _ = pixels(member, None).shape
        except Unreadable:
            continue
        return height, width, 3
    raise SourceError(f"{listed.name}: none of its {listed.total} image files could be read")


def _digest(listed: Source, form: Form, *others: object) -> str:
    """Of what is being built, and how."""
    parts = [listed.fingerprint, listed.class_names, form.model_dump(), SHARD_FILES, CHUNK_BYTES, *others]
    return xxhash.xxh3_64_hexdigest(json.dumps(parts).encode())


def _write(
    listed: Source,
    store: Path,
    form: Form,
    old: Manifest | None,
    writers: Writers,
    strict: bool,
    progress: Progress | None,
) -> tuple[list[ShardEntry], int]:
    """All shards of a source, and how many of its files were left out."""
    for key in listed.foreign:
        _leave_out(key, "not an image file", strict)
    entries, skipped, done = list[ShardEntry](), len(listed.foreign), 0
    number = 1 + max(int(shard.file[6:-6]) for shard in old.shards) if old else 0
    pieces = (Piece(chunk, store / f"shard-{n:05d}.arrow", form) for n, chunk in enumerate(_chunks(listed), number))
    for shard in _shards(pieces, store, writers):
        for key, reason in shard.skipped:
            _leave_out(key, reason, strict)
        skipped, done = skipped + len(shard.skipped), done + shard.members
        entries += [shard.entry] if shard.entry else []
        if progress:
            progress(done, max(done, listed.total))
    if progress:
        progress(done, done)
    return entries, skipped


def _shards(pieces: Iterator[Piece], store: Path, writers: Writers) -> Iterator[Shard]:
    """Shards in order, each in its place."""
    try:
        with contextlib.closing(writers(pieces)) as found:
            for written in found:
                yield put_in_place(written)
    except OSError as error:
        raise unwritable(store, error) from None


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
