"""Write one shard: decode and resize images, and store them as checksummed record batches of one Arrow file.

A writer may run in any process on any machine. It writes to a temporary file whose name nobody else uses; only the
process that holds the store's lock renames that file to the shard's name. So a writer that outlives its build, or that
was taken for lost and runs twice, changes nothing in the store. Beside each shard of an unfinished store lies a summary
of it, so that a build that was killed can resume after the shards that are complete.
"""

from __future__ import annotations

import io
import operator
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import pyarrow as pa
import pydantic
import xxhash
from PIL import Image

from ssl_dist.errors import SourceError, Unreadable
from ssl_dist.files import write_text
from ssl_dist.store.building.sources import File, Member
from ssl_dist.store.building.sources.base import to_unicode
from ssl_dist.store.decode import ALPHA, decode, is_one_colour, is_plain_jpeg, resize
from ssl_dist.store.schema import NO_LABEL, BatchEntry, Encoding, ShardEntry, checksum, shard_schema

JPEG_QUALITY = 90
# A record batch ends at this size: a reader that needs one row checks the whole record batch.
BATCH_BYTES = 2 << 20
# Writes are large so that the page cache can use large pages for the file, where the file system supports them.
_WRITE_BYTES = 16 << 20
_MAGIC = b"ARROW1\0\0"  # the first bytes of an Arrow IPC file; the schema follows


class ShardSummary(pydantic.BaseModel):
    """The content of a shard.

    Attributes:
        members: number of images that the writer was given.
        entry: the shard's entry in the manifest; None: no image was readable, and there is no file.
        skipped: (key, reason) of each image that was left out.
        one_colour: key of each image whose pixels are all the same.
    """

    members: int
    entry: ShardEntry | None = None
    skipped: list[tuple[str, str]] = []
    one_colour: list[str] = []


class ShardFormat(pydantic.BaseModel):
    """The format of images in a shard. The fields' names are part of a build's digest: renaming one orphans builds.

    Attributes:
        encoding: "raw" or "jpeg".
        image_shape: (H, W, 3).
        size_px: side that images are resized to; None: they have ``image_shape`` already.
        batch_rows: the most rows of a record batch.
        alpha: what is done with transparency; see ``decode``.
    """

    encoding: Encoding
    image_shape: tuple[int, int, int]
    size_px: int | None
    batch_rows: int
    alpha: str | None = pydantic.Field(None, exclude_if=operator.not_)  # builds of earlier versions have no such field


class ShardJob(NamedTuple):
    """The work of a writer: the images of one shard, the path that the shard gets, and its format."""

    members: list[Member]
    path: Path
    format: ShardFormat

    @property
    def memory_bytes(self) -> int:
        """Memory that the members take."""
        return sum(member.memory_bytes for member in self.members)


class WrittenShard(NamedTuple):
    """The result of a writer.

    Attributes:
        path: the shard's path.
        summary: the shard's content.
        temporary: the file to rename to ``path``; None: it has that name already, or no image was readable.
    """

    path: Path
    summary: ShardSummary
    temporary: Path | None


def write_shard(job: ShardJob, count: Callable[[int], None] = lambda images: None) -> WrittenShard:
    """Write a shard to a temporary file, which ``publish_shard`` renames.

    Args:
        count: called with 1 after each image, so that others see how far this shard is.

    Raises:
        SourceError: an image has another size than the store's, or its file cannot be read now.
        OSError: the shard cannot be written.
    """
    temporary = job.path.with_name(f".{job.path.stem}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb", buffering=_WRITE_BYTES) as file:
            summary, batches = _write_members(file, job, count)
            file.flush()
            os.fsync(file.fileno())
        if batches:
            summary.entry = _checksum_shard(temporary, job.path.name, batches)
            return WrittenShard(job.path, summary, temporary)
    except BaseException:
        temporary.unlink(missing_ok=True)  # free the space: the disk may be full
        raise
    temporary.unlink()
    return WrittenShard(job.path, summary, None)


def _write_members(
    file: IO[bytes], job: ShardJob, count: Callable[[int], None]
) -> tuple[ShardSummary, list[BatchEntry]]:
    """Write the Arrow file; return its summary without the entry, and its record batches without their checksums."""
    summary, batches = ShardSummary(members=len(job.members)), list[BatchEntry]()
    schema, sink = shard_schema(job.format.encoding, job.format.image_shape), pa.PythonFile(file, mode="w")
    writer = pa.ipc.new_file(sink, schema)
    for rows in _fill_batches(job, summary, count):
        start = sink.tell() or len(_MAGIC) + schema.serialize().size  # the first write puts the file's header before
        writer.write_batch(_to_record_batch(rows, schema))
        batches.append(BatchEntry(rows=len(rows), offset=start, length=sink.tell() - start, xxh3=""))
    writer.close()
    return summary, batches


def _fill_batches(job: ShardJob, summary: ShardSummary, count: Callable[[int], None]) -> Iterator[list[_Row]]:
    """Yield the rows of each record batch of a shard, and add the images that cannot be read to its summary."""
    rows, num_bytes = list[_Row](), 0
    for member in job.members:
        count(1)
        try:
            rows.append(_make_row(member, job.format))
        except Unreadable as error:
            summary.skipped.append((to_unicode(member.key), str(error)))
            continue
        if rows[-1].is_one_colour:
            summary.one_colour.append(rows[-1].key)
        image = rows[-1].image
        num_bytes += len(image) if isinstance(image, bytes) else image.nbytes
        if len(rows) == job.format.batch_rows or num_bytes >= BATCH_BYTES:
            yield rows
            rows, num_bytes = [], 0
    if rows:
        yield rows


def publish_shard(written: WrittenShard) -> ShardSummary:
    """Rename a shard to its own name and write its summary beside it; only the holder of the store's lock may.

    Raises:
        OSError: it cannot be written.
    """
    if written.temporary:
        written.temporary.replace(written.path)
    write_text(summary_path(written.path), written.summary.model_dump_json())
    return written.summary


def summary_path(shard: Path) -> Path:
    """Return the path of a shard's summary, which exists while the store is unfinished."""
    return shard.with_name(f".{shard.stem}.json")


def read_summary(shard: Path, num_members: int) -> ShardSummary | None:
    """Return the summary of a shard that was made of ``num_members`` images and is undamaged; otherwise None."""
    try:
        summary = ShardSummary.model_validate_json(summary_path(shard).read_bytes())
        if summary.members != num_members:
            return None
        if summary.entry is None:
            return summary
        return summary if _checksum_shard(shard, shard.name, summary.entry.batches) == summary.entry else None
    except (OSError, ValueError):
        return None


def decode_member(member: Member, size_px: int | None, alpha: str | None = ALPHA) -> np.ndarray:
    """Return a member's pixels, uint8 ``[H, W, 3]``; see ``decode``.

    Raises:
        Unreadable: the member is not an image that a store takes.
        SourceError: its file cannot be read now, but perhaps later.
    """
    content = _read_member(member)
    return resize(content, size_px) if isinstance(content, np.ndarray) else decode(content, size_px, alpha)


def _read_member(member: Member) -> bytes | np.ndarray:
    """Return a member's content, read from its file if it is not in memory; raise what ``decode_member`` raises."""
    if not isinstance(member.content, File):
        return member.content
    try:
        return member.content.read()
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise Unreadable(error.strerror or str(error)) from None
    except OSError as error:  # a fault of the network or the disk must not leave an image out for good
        raise SourceError(f"{member.key} cannot be read ({error}): call again to continue") from None


class _Row(NamedTuple):
    """A row of a shard: pixels or a JPEG file, its label, its key, and whether its pixels are all the same."""

    image: np.ndarray | bytes
    label: int | None
    key: str
    is_one_colour: bool


def _make_row(member: Member, shard_format: ShardFormat) -> _Row:
    """Return the row of an image.

    Raises:
        Unreadable, SourceError: the image cannot be read (see ``decode_member``), or has another size.
    """
    member = member._replace(content=_read_member(member))
    pixels, shape = decode_member(member, shard_format.size_px, shard_format.alpha), shard_format.image_shape
    if pixels.shape != shape:
        raise SourceError(
            f"{member.key} is {pixels.shape[1]} x {pixels.shape[0]} px where the images before it are"
            f" {shape[1]} x {shape[0]}: build a store with --size-px {min(shape[:2])}, which resizes all"
        )
    image = pixels if shard_format.encoding == "raw" else _to_jpeg(member.content, pixels)
    label = None if member.label == NO_LABEL else member.label
    return _Row(image, label, to_unicode(member.key), is_one_colour(pixels))


def _to_record_batch(rows: list[_Row], schema: pa.Schema) -> pa.RecordBatch:
    images, labels, keys, _ = zip(*rows, strict=True)
    is_jpeg = pa.types.is_binary(schema.field("image").type)
    column = pa.array(images) if is_jpeg else pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack(images))
    columns = [column, pa.array(labels, pa.int32()), pa.array(keys, pa.string())]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _to_jpeg(content: bytes | File | np.ndarray, pixels: np.ndarray) -> bytes:
    """Return an image as a JPEG file: the file itself if it is one of the right size, which loses nothing."""
    if isinstance(content, bytes) and is_plain_jpeg(content, (pixels.shape[1], pixels.shape[0])):
        return content
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _checksum_shard(path: Path, name: str, batches: Sequence[BatchEntry]) -> ShardEntry:
    """Read a shard's file and return its entry for the manifest, which calls it ``name``, with all checksums."""
    entries, whole = list[BatchEntry](), xxhash.xxh3_64()
    with path.open("rb") as file:  # not a memory map, whose pages would count as the writer's memory
        for batch in batches:
            whole.update(file.read(batch.offset - file.tell()))
            content = file.read(batch.length)
            whole.update(content)
            entries.append(batch.model_copy(update={"xxh3": checksum(content)}))
        whole.update(file.read())
        size = file.tell()
    total = sum(batch.rows for batch in entries)
    return ShardEntry(file=name, rows=total, bytes=size, xxh3=whole.hexdigest(), batches=tuple(entries))
