"""Build, merge and extend stores: list the images of a source, have shards written, then write the manifest.

A source is split into shards of SHARD_IMAGES images (or SHARD_MEMORY_BYTES) before any is written, so the shards do not
depend on the number of writers. A shard is what one writer makes at a time and what a killed build keeps: a source of
fewer images has smaller shards. The manifest is written when every shard is on disk. A ``build`` that dies leaves no
store, and the same call resumes it after the shards that are complete; an ``append`` that dies leaves the store as it
was.
"""

from __future__ import annotations

import collections
import json
import logging
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import xxhash

from ssl_dist.errors import ConfigError, StoreError, Unreadable, printable
from ssl_dist.store.building.labelling import with_labels_of
from ssl_dist.store.building.lock import BuildJob, local_folder, lock_store, refuse_other_files, unfinished_job
from ssl_dist.store.building.room import expect_room_for_raw
from ssl_dist.store.building.shard_writer import ShardFormat, decode_member
from ssl_dist.store.building.sources import HashRange, LeftOut, Source, list_source, list_stores
from ssl_dist.store.building.sources.base import SPLITS, class_name
from ssl_dist.store.building.writer_pool import Writers, make_writers
from ssl_dist.store.building.writing import SHARD_MEMORY_BYTES, Execution, ProgressCallback, no_image, write_shards
from ssl_dist.store.decode import ALPHA, MAX_PIXELS, combine_alpha, describe_alpha, describe_resize, parse_alpha
from ssl_dist.store.schema import BATCH_ROWS, MANIFEST, Encoding, Manifest, ShardEntry

SHARD_IMAGES = 16 * BATCH_ROWS
SMALLEST_SHARD = 64  # images
# names of folders that are parts of a data set, or hold what belongs to its images
_KINDS = r"images?|imgs?|masks?|labels?|annot\w*|gt|segmentation\w*"
_PART = re.compile(rf"(?:(?:jpeg|png)?(?:{_KINDS})|{'|'.join(SPLITS)})[-_ ]?(?:{_KINDS}|[0-9]+)?", re.IGNORECASE)
_SHARDS = 32  # the most of a source of few images; sizes are powers of two, so it has more than half of that

log = logging.getLogger(__name__)


def build(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    split: str = "train",
    size_px: int | None = None,
    encoding: str = "raw",
    alpha: str = ALPHA,
    share: HashRange = (0, 1),
    labels_csv: str | os.PathLike[str] | None = None,
    keep: bool = False,
    workers: int | Writers | None = None,
    strict: bool = False,
    progress: ProgressCallback | None = None,
) -> Manifest:
    """Build a store and return its manifest, whose ``skipped`` counts the files that were left out.

    The log says which, by reason; a file beside the store, ``DESTINATION-left-out.txt``, names all of them.

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
        labels_csv: a file of labels, which replace all labels of the source (see ``labelling.read_labels_csv``).
        keep: return a store that is there already if it was built from the same source with the same settings.
        workers: number of writer processes; None: one a core; or other writers, such as those of ``cluster.build``.
        strict: build nothing if a file is left out.
        progress: called with (images done, images in all).

    Raises:
        SourceError: no image is readable, one is not (strict), or sizes differ and size_px is None.
        StoreError: the destination holds a store already, or cannot be written, or has no room.
        ConfigError: an argument is out of range, or the labels do not fit.
    """
    if not 0 <= share[0] < share[1] <= 1:
        raise ConfigError(f"share {share}: two numbers, 0 <= low < high <= 1")
    execution = Execution(make_writers(workers), strict, progress, keep)
    listed = list_source(source)
    listed = (listed if labels_csv is None else with_labels_of(listed, labels_csv)).select(share)
    _warn_of_classes(listed.class_names)
    return _build(listed, local_folder(destination), split, _shard_format(listed, size_px, encoding, alpha), execution)


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
    paths = [local_folder(store) for store in stores]
    if not paths:
        raise ConfigError("there is no store to merge: name one or more")
    execution = Execution(make_writers(workers), True, progress)
    first = Manifest.read(paths[0])
    sums = collections.Counter(sum_ for path in paths for sum_ in {shard.xxh3 for shard in Manifest.read(path).shards})
    if max(sums.values(), default=0) > 1:
        log.warning("some of the stores have shards of the same images: the new store will have these images twice")
    listed = list_stores(", ".join(map(str, paths)), paths)
    shard_format = _shard_format(listed, None, first.encoding, ALPHA)
    return _build(listed, local_folder(destination), first.split, shard_format, execution)


def append(
    source: str | os.PathLike[str],
    store: str | os.PathLike[str],
    *,
    workers: int | Writers | None = None,
    strict: bool = False,
    allow_duplicates: bool = False,
    progress: ProgressCallback | None = None,
) -> Manifest:
    """Add a source's images to a store, after those it has, whose sample ids and labels do not change.

    Readers see the old store or the new one. A class whose name the store knows keeps its number; new classes follow.
    Images that all lie in one folder with the name of a class are of that class.

    Args:
        allow_duplicates: add also images that the store has already, with the same key and pixels.

    Raises:
        SourceError, StoreError, ConfigError: as for ``build``; SourceError also where the store has an image already.
    """
    execution = Execution(make_writers(workers), strict, progress, allow_duplicates=allow_duplicates)
    path = local_folder(store)
    old = Manifest.read(path)
    listed, shard_format = list_source(source, old.class_names), _format_of(old)
    expect_room_for_raw(path, listed.num_images, shard_format, old)
    with lock_store(path) as lock:
        old = Manifest.read(path)  # again: now no other process can change it
        jobs = _jobs(listed, shard_format, len(old.shards))
        job = _begun(jobs, lock.job.digest if lock.job else "")
        if (died := lock.job) and died.digest == job.digest and old.made_of == died.identity:
            return old  # an earlier call died after it had written the manifest
        lock.begin(job, old)
        known = set(map(class_name, old.class_names))
        names = (*old.class_names, *(name for name in listed.class_names if class_name(name) not in known))
        _warn_of_classes(names)
        _warn_of_numbers(old.class_names, listed.class_names)
        renumbered = listed.with_class_names(names)
        shards, counts = write_shards(renumbered, lock, shard_format, old, execution, jobs[job])
        kept = old.model_dump(exclude={"shards", "xxh3"}) | {"class_names": names}
        kept |= {name: getattr(old, name) + number for name, number in counts.items()}
        if listed.treatment:
            kept["alpha"] = combine_alpha([old.alpha, listed.treatment.alpha])
            if kept["alpha"] != old.alpha:
                ways = describe_alpha(old.alpha), describe_alpha(listed.treatment.alpha)
                log.warning("transparency differs (%s: %s, %s: %s)", path, ways[0], listed.name, ways[1])
            kept["resize"] = listed.treatment.resize if old.resize == describe_resize(None) else old.resize
        return _write_manifest(path, job, kept, [*old.shards, *shards])


def _shard_format(listed: Source, size_px: int | None, encoding: str, alpha: str) -> ShardFormat:
    """Return the format of a new store, which has the size of its first readable image if ``size_px`` is None."""
    asked = parse_alpha(alpha)
    if encoding not in get_args(Encoding):
        raise ConfigError(f"encoding {encoding!r}: it is one of {', '.join(get_args(Encoding))}")
    max_px = math.isqrt(MAX_PIXELS)
    if size_px is not None and not 1 <= size_px <= max_px:
        raise ConfigError(f"size_px {size_px}: it is a number of pixels from 1 to {max_px}")
    shape = _first_shape(listed) if size_px is None else (size_px, size_px, 3)
    if listed.treatment and asked not in (ALPHA, listed.treatment.alpha):
        raise ConfigError(f"alpha {alpha}: the images of a store are as that store has them: build it from its source")
    fields = {"encoding": encoding, "image_shape": shape, "size_px": size_px, "batch_rows": BATCH_ROWS}
    return ShardFormat.model_validate({**fields, "alpha": listed.treatment.alpha if listed.treatment else asked})


def _warn_of_classes(names: Sequence[str]) -> None:
    """Warn of names that are likely not those of classes, and of two that are likely one."""
    if len(parts := list(filter(_PART.fullmatch, names))) > 1:
        log.warning("%s became classes: if these folders are parts, build a store of each", ", ".join(parts))
    first_of = dict[str, str]()
    for name in names:
        if (other := first_of.setdefault(name.casefold(), name)) != name:
            log.warning(
                "classes %s and %s differ in the case of their letters alone", printable(other), printable(name)
            )


def _warn_of_numbers(old: Sequence[str], added: Sequence[str]) -> None:
    """Warn where numbers are added to classes that have names, or names to numbers: they may be the same classes."""
    if old and added and all(map(str.isdecimal, added)) != all(map(str.isdecimal, old)):
        log.warning(
            "classes %s and %s stand side by side now: if they are the same, label the new images by the old names",
            *(printable(", ".join(some[:3])) for some in (old, added)),
        )


def _format_of(store: Manifest) -> ShardFormat:
    """Return the format of further shards of a store."""
    shape = store.image_shape
    side = None if store.resize == describe_resize(None) else shape[0]
    return ShardFormat(
        encoding=store.encoding, image_shape=shape, size_px=side, batch_rows=BATCH_ROWS, alpha=store.alpha
    )


def _first_shape(listed: Source) -> tuple[int, ...]:
    first = None
    for member in listed.members():
        try:
            return decode_member(member, None).shape
        except Unreadable as error:
            first = first or LeftOut(member.key, str(error))
    raise no_image(listed, first)


def _build(listed: Source, store: Path, split: str, shard_format: ShardFormat, execution: Execution) -> Manifest:
    """Build a store of a listed source, resume an unfinished build of it, or ``keep`` the store that is there."""
    jobs, begun = _jobs(listed, shard_format, 0, split), unfinished_job(store)
    made = Manifest.read(store).made_of if (store / MANIFEST).exists() else None
    job = _begun(jobs, begun.digest if begun else "", made or "")
    if begun != job and (existing := _existing_store(store, job, execution.keep)):
        return existing
    refuse_other_files(store)
    expect_room_for_raw(store, listed.num_images, shard_format, None)
    with lock_store(store) as lock:
        # another process has finished it meanwhile, or an earlier call died after it had written the manifest
        if existing := _existing_store(store, job, execution.keep or lock.job == job):
            return existing
        lock.begin(job, None)
        shards, counts = write_shards(listed, lock, shard_format, None, execution, jobs[job])
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


def _jobs(listed: Source, shard_format: ShardFormat, old_shards: int, *more: object) -> dict[BuildJob, int]:
    """Map the job of a build to the number of images of its shards; a second job is that of earlier versions' shards.

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
