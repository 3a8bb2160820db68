"""Build, merge and extend stores: list the images of a source, have shards written, then write the manifest.

A source is split into shards of SHARD_IMAGES images (or SHARD_MEMORY_BYTES) before any is written, so the shards do not
depend on the number of writers. A shard is what one writer makes at a time and what a killed build keeps: a source of
fewer images has smaller shards. The manifest is written when every shard is on disk. A ``build`` that dies leaves no
store, and the same call resumes it after the shards that are complete; an ``append`` that dies leaves the store as it
was.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import xxhash

from ssl_dist.errors import ConfigError, SourceError, StoreError, Unreadable, printable
from ssl_dist.store.building.lock import BuildJob, lock_store, refuse_other_files, unfinished_job
from ssl_dist.store.building.shard_writer import ShardFormat, ShardJob, decode_member, publish_shard
from ssl_dist.store.building.sources import HashRange, Member, Source, list_source, list_stores
from ssl_dist.store.building.writer_pool import Writers, make_writers
from ssl_dist.store.decode import ALPHA, MAX_PIXELS, combine_alpha, describe_resize, parse_alpha
from ssl_dist.store.schema import BATCH_ROWS, MANIFEST, Encoding, Manifest, ShardEntry
from ssl_dist.uris import is_remote

SHARD_IMAGES = 16 * BATCH_ROWS
SMALLEST_SHARD = 64  # images
_SHARDS = 32  # the most of a source of few images; sizes are powers of two, so it has more than half of that
SHARD_MEMORY_BYTES = 256 << 20  # a shard also ends when its images take this much memory before they are written

log = logging.getLogger(__name__)
ProgressCallback = Callable[[int, int], None]  # called with (images done, images in all)


class _Execution(NamedTuple):
    """The choices of a build that change how it runs, but no byte of the store."""

    writers: Writers
    strict: bool
    progress: ProgressCallback | None
    keep: bool = False


def build(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    split: str = "train",
    size_px: int | None = None,
    encoding: str = "raw",
    alpha: str = ALPHA,
    share: HashRange = (0, 1),
    keep: bool = False,
    workers: int | Writers | None = None,
    strict: bool = False,
    progress: ProgressCallback | None = None,
) -> Manifest:
    """Build a store and return its manifest, whose ``skipped`` counts the files that were left out.

    Args:
        source: anything that ``list_source`` takes; tars are streamed, never extracted.
        destination: a folder that is missing, is empty, or holds an unfinished build, which is resumed.
        split: a name for the manifest.
        size_px: side of the square images (see ``decode``); None: keep the size that all images have.
        encoding: "raw", uint8 pixels, or "jpeg", which is smaller and slower to read: JPEG files of the right size
            are kept as they are, other images are encoded with quality 90.
        alpha: the ground that transparent pixels are composited onto, "white", "black" or "#rrggbb"; "drop" shows the
            colours under the transparency (see ``decode``). Images of a store are as that store has them.
        share: take only images whose key, hashed to a number in [0, 1), lies in [low, high).
        keep: return a store that is there already if it was built from the same source with the same settings.
        workers: number of writer processes; None: one a core; or other writers, such as those of ``cluster.build``.
        strict: stop at the first file that is not a readable image instead of skipping it.
        progress: called with (images done, images in all).

    Raises:
        SourceError: no image is readable, one is not (strict), or sizes differ and size_px is None.
        StoreError: the destination holds a store already, or cannot be written.
        ConfigError: an argument is out of range.
    """
    if not 0 <= share[0] < share[1] <= 1:
        raise ConfigError(f"share {share}: two numbers, 0 <= low < high <= 1")
    execution = _Execution(make_writers(workers), strict, progress, keep)
    listed = list_source(source).select(share)
    return _build(listed, _local_folder(destination), split, _shard_format(listed, size_px, encoding, alpha), execution)


def merge(
    stores: Sequence[str | os.PathLike[str]],
    destination: str | os.PathLike[str],
    *,
    workers: int | Writers | None = None,
    progress: ProgressCallback | None = None,
) -> Manifest:
    """Build a store of all images of several stores, in their order; classes with the same name become one class.

    The store goes on with what its parts had: images that are appended are resized where a part resized its images,
    and composited as the parts did. Where the parts differ in that, the manifest says "mixed", a warning is logged, and
    appended images are composited onto white.

    Raises:
        StoreError: one of them is no store or is damaged, their images differ in size or encoding, or the destination
            holds a store already or cannot be written.
    """
    paths = [_local_folder(store) for store in stores]
    if not paths:
        raise ConfigError("there is no store to merge: name one or more")
    execution = _Execution(make_writers(workers), True, progress)
    first = Manifest.read(paths[0])
    listed = list_stores(", ".join(map(str, paths)), paths)
    shard_format = _shard_format(listed, None, first.encoding, ALPHA)
    return _build(listed, _local_folder(destination), first.split, shard_format, execution)


def append(
    source: str | os.PathLike[str],
    store: str | os.PathLike[str],
    *,
    workers: int | Writers | None = None,
    strict: bool = False,
    progress: ProgressCallback | None = None,
) -> Manifest:
    """Add a source's images to a store, after those it has, whose sample ids and labels do not change.

    Readers see the old store or the new one. A class whose name the store knows keeps its number; new classes follow.

    Raises:
        SourceError, StoreError, ConfigError: as for ``build``.
    """
    execution = _Execution(make_writers(workers), strict, progress)
    path, listed = _local_folder(store), list_source(source)
    Manifest.read(path)
    with lock_store(path) as lock:
        old = Manifest.read(path)  # again: now no other process can change it
        shape = old.image_shape
        side = None if old.resize == describe_resize(None) else shape[0]
        shard_format = ShardFormat(
            encoding=old.encoding, image_shape=shape, size_px=side, batch_rows=BATCH_ROWS, alpha=old.alpha
        )
        jobs = _jobs(listed, shard_format, len(old.shards))
        job = _begun(jobs, lock.job.digest if lock.job else "")
        if (died := lock.job) and died.digest == job.digest and old.made_of == died.identity:
            return old  # an earlier call died after it had written the manifest
        lock.begin(job, old)
        names = (*old.class_names, *(name for name in listed.class_names if name not in old.class_names))
        renumbered = listed.with_class_names(names)
        shards, counts = _write_shards(renumbered, path, shard_format, old, execution, jobs[job])
        kept = old.model_dump(exclude={"shards", "xxh3"}) | {"class_names": names}
        kept |= {name: getattr(old, name) + number for name, number in counts.items()}
        if listed.treatment:
            kept["alpha"] = combine_alpha([old.alpha, listed.treatment.alpha])
        return _write_manifest(path, job, kept, [*old.shards, *shards])


def _local_folder(path: str | os.PathLike[str]) -> Path:
    """Return the path; raise ConfigError if it is a URI."""
    if is_remote(path):
        raise ConfigError(
            f"{path}: a store is built and extended in a local folder; copy it there when complete, {MANIFEST} last"
        )
    return Path(path)


def _shard_format(listed: Source, size_px: int | None, encoding: str, alpha: str) -> ShardFormat:
    """Return the format of a new store, which has the size of its first readable image if ``size_px`` is None."""
    asked = parse_alpha(alpha)
    if encoding not in get_args(Encoding):
        raise ConfigError(f"encoding {encoding!r}: it is one of {', '.join(get_args(Encoding))}")
    max_px = math.isqrt(MAX_PIXELS)
    if size_px is not None and not 1 <= size_px <= max_px:
        raise ConfigError(f"size_px {size_px}: it is a number of pixels from 1 to {max_px}")
    shape = _first_shape(listed) if size_px is None else (size_px, size_px, 3)
    fields = {"encoding": encoding, "image_shape": shape, "size_px": size_px, "batch_rows": BATCH_ROWS}
    return ShardFormat.model_validate({**fields, "alpha": listed.treatment.alpha if listed.treatment else asked})


def _first_shape(listed: Source) -> tuple[int, ...]:
    first = None
    for member in listed.members():
        try:
            return decode_member(member, None).shape
        except Unreadable as error:
            first = first or (member.key, str(error))
    raise _no_image(listed, first)


def _no_image(listed: Source, first: tuple[str, str] | None) -> SourceError:
    """Return the error of a source without a readable image, with the key of the first file and its reason."""
    why = f" ({first[0]}: {first[1]})" if first else ""
    return SourceError(f"{listed.name}: none of its {listed.num_images} image files could be read{why}")


def _build(listed: Source, store: Path, split: str, shard_format: ShardFormat, execution: _Execution) -> Manifest:
    """Build a store of a listed source, resume an unfinished build of it, or ``keep`` the store that is there."""
    jobs, begun = _jobs(listed, shard_format, 0, split), unfinished_job(store)
    made = Manifest.read(store).made_of if (store / MANIFEST).exists() else None
    job = _begun(jobs, begun.digest if begun else "", made or "")
    if begun != job and (existing := _existing_store(store, job, execution.keep)):
        return existing
    refuse_other_files(store)
    with lock_store(store) as lock:
        # another process has finished it meanwhile, or an earlier call died after it had written the manifest
        if existing := _existing_store(store, job, execution.keep or lock.job == job):
            return existing
        lock.begin(job, None)
        shards, counts = _write_shards(listed, store, shard_format, None, execution, jobs[job])
        about = shard_format.model_dump(include={"encoding", "image_shape", "alpha"})
        about |= {"split": split, "resize": describe_resize(shard_format.size_px)}
        if listed.treatment and shard_format.size_px is None:
            about["resize"] = listed.treatment.resize
        about |= {"class_names": listed.class_names, **counts}
        return _write_manifest(store, job, about, shards)


def _existing_store(store: Path, job: BuildJob, keep: bool) -> Manifest | None:
    """Return the manifest of the store that this job made before; None: there is no store.

    Raises:
        StoreError: another job made the store that is there, or it may not be kept.
    """
    if not (store / MANIFEST).exists():
        return None
    existing = Manifest.read(store)
    if not (keep and existing.made_of == job.identity):
        raise StoreError(f"{store} holds a store already: choose another destination, or delete it first")
    return existing


def _write_manifest(store: Path, job: BuildJob, about: dict[str, Any], shards: Sequence[ShardEntry]) -> Manifest:
    """Write the manifest, which makes the store visible; ``about`` has the fields that job and shards do not give."""
    sums = {"rows": sum(shard.rows for shard in shards), "bytes": sum(shard.bytes for shard in shards)}
    fields = {**about, **sums, "made_of": job.identity, "shards": tuple(shards)}
    manifest = Manifest.model_validate(fields).with_checksum()
    manifest.write(store)
    return manifest


def _skip_file(key: str, reason: str, strict: bool) -> None:
    """Log that a file is left out, or refuse to leave it out."""
    if strict:
        raise SourceError(f"{key}: {reason} (--strict: no file is skipped)")
    log.warning("skipped %s: %s", printable(key), printable(reason))


def _jobs(listed: Source, shard_format: ShardFormat, old_shards: int, *more: object) -> dict[BuildJob, int]:
    """Return the job of a build with the images of its shards, then as earlier versions would split the source.

    A job has a digest of everything that the store depends on; only a build with the same digest is resumed.
    """
    size, share = SHARD_IMAGES, -(-listed.num_images // _SHARDS)
    if listed.num_images > SMALLEST_SHARD:
        size = min(SHARD_IMAGES, max(SMALLEST_SHARD, 1 << (share - 1).bit_length()))
    jobs = {}
    for images in (size, SHARD_IMAGES):
        parts = [listed.fingerprint, listed.class_names, shard_format.model_dump(), images, SHARD_MEMORY_BYTES, *more]
        jobs[BuildJob(xxhash.xxh3_64_hexdigest(json.dumps(parts).encode()), old_shards)] = images
    return jobs


def _begun(jobs: dict[BuildJob, int], *known: str) -> BuildJob:
    """Return the job that one of these texts names: a build that died, or a manifest; otherwise the first."""
    return next((job for job in jobs if any(text.startswith(job.digest) for text in known)), next(iter(jobs)))


def _write_shards(
    listed: Source,
    store: Path,
    shard_format: ShardFormat,
    old: Manifest | None,
    execution: _Execution,
    shard_images: int,
) -> tuple[list[ShardEntry], dict[str, int]]:
    """Write all shards of a source; return their entries, and the manifest's counts of images."""
    writers, strict, progress, _ = execution
    report = progress or (lambda done, total: None)
    for key in listed.non_images:
        _skip_file(key, "not an image file", strict)
    entries, skipped, done = list[ShardEntry](), len(listed.non_images), 0
    one_colour = list[str]()
    first = 1 + max(int(shard.file[6:-6]) for shard in old.shards) if old else 0
    split = enumerate(_split_into_shards(listed, shard_images), first)
    jobs = (ShardJob(members, store / f"shard-{number:05d}.arrow", shard_format) for number, members in split)
    with contextlib.closing(writers(jobs)) as results:
        for result in results:
            if isinstance(result, int):  # images of shards that are not complete
                report(max(done, result), max(result, listed.num_images))
                continue
            summary = publish_shard(result)  # when those before it are published
            for key, reason in summary.skipped:
                _skip_file(key, reason, strict)
            skipped, done = skipped + len(summary.skipped), done + summary.members
            entries += [summary.entry] if summary.entry else []
            one_colour += summary.one_colour
            report(done, max(done, listed.num_images))
    report(done, done)
    if not entries:
        raise _no_image(listed, None)
    _warn_of_one_colour(one_colour)
    return entries, {"skipped": skipped, "one_colour": len(one_colour)}


def _warn_of_one_colour(keys: Sequence[str]) -> None:
    """Warn of images whose pixels are all the same: a drawing may have the colour of the ground under it."""
    if keys:
        names, more = ", ".join(map(printable, keys[:3])), ", ..." if len(keys) > 3 else ""
        which = "1 image is" if len(keys) == 1 else f"{len(keys):,} images are"
        log.warning("%s of one colour: %s%s (of drawings on a transparent ground? see --alpha)", which, names, more)


def _split_into_shards(listed: Source, shard_images: int) -> Iterator[list[Member]]:
    members, num_bytes = list[Member](), 0
    for member in listed.members():
        members.append(member)
        num_bytes += member.memory_bytes
        if len(members) == shard_images or num_bytes >= SHARD_MEMORY_BYTES:
            yield members
            members, num_bytes = [], 0
    if members:
        yield members
