"""Write the shards of a listed source in its order, and account for each of its files."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ssl_dist.errors import SourceError, StoreError, printable
from ssl_dist.store.building.duplicates import KnownImages
from ssl_dist.store.building.left_out import tell_left_out
from ssl_dist.store.building.lock import BuildLock
from ssl_dist.store.building.room import lacks_room, unfinished_bytes
from ssl_dist.store.building.shard_writer import ShardFormat, ShardJob, ShardSummary, publish_shard
from ssl_dist.store.building.sources import LeftOut, Member, Source
from ssl_dist.store.building.writer_pool import Writers
from ssl_dist.store.schema import Manifest, ShardEntry

SHARD_MEMORY_BYTES = 256 << 20  # a shard also ends when its images take this much memory before they are written
log = logging.getLogger(__name__)
ProgressCallback = Callable[[int, int], None]  # called with (images done, images in all)


class Execution(NamedTuple):
    """The choices of a build that change how it runs, but no byte of the store."""

    writers: Writers
    strict: bool
    progress: ProgressCallback | None
    keep: bool = False
    allow_duplicates: bool = True


def write_shards(
    listed: Source,
    lock: BuildLock,
    shard_format: ShardFormat,
    old: Manifest | None,
    execution: Execution,
    shard_images: int,
) -> tuple[list[ShardEntry], dict[str, int]]:
    """Write all shards of a source; return their entries, and the manifest's counts of files and images.

    Args:
        old: the store that the shards are added to, if it is there.
        shard_images: the number of images of a shard.

    Raises:
        SourceError: nothing can be built of the source as it is, and what was written has been removed; or an image
            cannot be read now.
        StoreError: the disk has no room.
    """
    entries, unread, one_colour = list[ShardEntry](), list[LeftOut](), list[str]()
    known, refusal = None if execution.allow_duplicates else KnownImages(lock.store), None
    with contextlib.closing(_write_each(listed, lock.store, shard_format, old, execution, shard_images)) as summaries:
        for summary in summaries:
            unread += itertools.starmap(LeftOut, summary.skipped)
            entries += [summary.entry] if summary.entry else []
            one_colour += summary.one_colour
            if known and summary.entry and (refusal := known.refusal(summary.entry)):
                break
    left_out = [*listed.left_out, *unread]
    if not refusal:
        named_in = tell_left_out(lock.store, left_out, listed.passed_over, growing=old is not None)
        refusal = None if entries else no_image(listed, next(iter(unread), None))
        if execution.strict and left_out:
            [(key, reason), *_] = left_out
            refusal = SourceError(f"{key}: {reason} (--strict: nothing is built; all {len(left_out):,} are {named_in})")
    if refusal:
        lock.abandon(old)
        raise refusal
    _warn_of_one_colour(one_colour)
    return entries, {"skipped": len(left_out), "one_colour": len(one_colour)}


def _write_each(
    listed: Source,
    store: Path,
    shard_format: ShardFormat,
    old: Manifest | None,
    execution: Execution,
    shard_images: int,
) -> Generator[ShardSummary, None, None]:
    """Write the shards of a source, and yield their summaries in order.

    Raises:
        StoreError: raw images that are left do not fit the disk. Of JPEG files it only warns: it knows those written.
    """
    report = execution.progress or (lambda done, total: None)
    first = 1 + max(int(shard.file[6:-6]) for shard in old.shards) if old else 0
    split = enumerate(_split_into_shards(listed, shard_images), first)
    jobs = (ShardJob(members, store / f"shard-{number:05d}.arrow", shard_format) for number, members in split)
    done, num_bytes, there, has_warned = 0, 0, unfinished_bytes(store, old), False
    with contextlib.closing(execution.writers(jobs)) as results:
        for result in results:
            if isinstance(result, int):  # images of shards that are not complete
                report(max(done, result), max(result, listed.num_images))
                continue
            yield (summary := publish_shard(result))  # when those before it are published
            done, num_bytes = done + summary.members, num_bytes + (summary.entry.bytes if summary.entry else 0)
            total = max(done, listed.num_images)
            report(done, total)
            problem = lacks_room(store, num_bytes / done * total - max(num_bytes, there), total - done)
            if problem and shard_format.encoding == "raw":
                raise StoreError(problem)
            if problem and not has_warned:
                log.warning("By the size of the %s images so far, %s", f"{done:,}", problem)
                has_warned = True
    report(done, done)


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


def no_image(listed: Source, first: LeftOut | None) -> SourceError:
    """Return the error of a source without a readable image; ``first`` is the first that cannot be read."""
    if first is None:
        return SourceError(f"{listed.name}: none of its images lies in the share that was asked for")
    return SourceError(
        f"{listed.name}: none of its {listed.num_images} image files could be read ({first.key}: {first.reason})"
    )


def _warn_of_one_colour(keys: Sequence[str]) -> None:
    """Warn of images whose pixels are all the same: a drawing may have the colour of the ground under it."""
    if keys:
        names, more = ", ".join(map(printable, keys[:3])), ", ..." if len(keys) > 3 else ""
        which = "1 image is" if len(keys) == 1 else f"{len(keys):,} images are"
        log.warning("%s of one colour: %s%s (of drawings on a transparent ground? see --alpha)", which, names, more)
