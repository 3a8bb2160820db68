"""Write one shard: decode and resize images, and store them as checksummed record batches of one Arrow file.

A writer may run in any process on any machine. It writes to a temporary file whose name nobody else uses; only the
process that holds the store's lock renames that file to the shard's name. So a writer that outlives its build, or that
was taken for lost and runs twice, changes nothing in the store. Beside each shard of an unfinished store lies a summary
of it, so that a build that was killed can resume after the shards that are complete.
"""

from __future__ import annotations

import io
import os
import uuid
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
from ssl_dist.store.decode import decode, is_plain_jpeg, resize
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
    """

    members: int
    entry: ShardEntry | None = None
    skipped: list[tuple[str, str]] = []


class ShardFormat(pydantic.BaseModel):
    """The format of images in a shard. The fields' names are part of a build's digest: renaming one orphans builds.

    Attributes:
        encoding: "raw" or "jpeg".
        image_shape: (H, W, 3).
        size_px: side that images are resized to; None: they have ``image_shape`` already.
        batch_rows: the most rows of a record batch.
    """

    encoding: Encoding
    image_shape: tuple[int, int, int]
    size_px: int | None
    batch_rows: int


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


def write_shard(job: ShardJob) -> WrittenShard:
    """Write a shard to a temporary file, which ``publish_shard`` renames.

    Raises:
        SourceError: an image has another size than the store's, or its file cannot be read now.
        OSError: the shard cannot be written.
    """
    temporary = job.path.with_name(f".{job.path.stem}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb", buffering=_WRITE_BYTES) as file:
            summary, batches = _write_members(file, job)
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


class _BatchSpan(NamedTuple):
    """A record batch in its file: its rows, and its bytes [start, stop)."""

    rows: int
    start: int
    stop: int


def _write_members(file: IO[bytes], job: ShardJob) -> tuple[ShardSummary, list[_BatchSpan]]:
    """Write the Arrow file; return its summary without the entry, and where its record batches lie."""
    summary, batches = ShardSummary(members=len(job.members)), list[_BatchSpan]()
    schema, batch = shard_schema(job.format.encoding, job.format.image_shape), _RecordBatchBuilder(job.format)
    sink = pa.PythonFile(file, mode="w")
    writer = pa.ipc.new_file(sink, schema)
    for member in job.members:
        try:
            batch.append(member)
        except Unreadable as error:
            summary.skipped.append((to_unicode(member.key), str(error)))
            continue
        if len(batch) == job.format.batch_rows or batch.num_bytes >= BATCH_BYTES:
            batches.append(_write_batch(writer, sink, schema, batch))
            batch = _RecordBatchBuilder(job.format)
    if len(batch):
        batches.append(_write_batch(writer, sink, schema, batch))
    writer.close()
    return summary, batches


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
        batches = [_BatchSpan(batch.rows, batch.offset, batch.offset + batch.length) for batch in summary.entry.batches]
        return summary if _checksum_shard(shard, shard.name, batches) == summary.entry else None
    except (OSError, ValueError):
        return None


def decode_member(member: Member, size_px: int | None) -> np.ndarray:
    """Return a member's pixels, uint8 ``[H, W, 3]``.

    Raises:
        Unreadable: the member is not an image that a store takes.
        SourceError: its file cannot be read now, but perhaps later.
    """
    content = _read_member(member)
    return resize(content, size_px) if isinstance(content, np.ndarray) else decode(content, size_px)


def _read_member(member: Member) -> bytes | np.ndarray:
    """Return a member's content, read from its file if it is not in memory; raise what ``decode_member`` raises."""
    if not isinstance(member.content, File):
        return member.content
    try:
        return member.content.read()
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise Unreadable(str(error)) from None
    except OSError as error:  # a fault of the network or the disk must not leave an image out for good
        raise SourceError(f"{member.key} cannot be read ({error}): call again to continue") from None


class _RecordBatchBuilder:
    """The rows of the record batch that is being filled."""

    def __init__(self, shard_format: ShardFormat) -> None:
        self._format, self.num_bytes = shard_format, 0
        self._images: list[np.ndarray | bytes] = []  # pixels, or JPEG files
        self._labels: list[int | None] = []
        self._keys: list[str] = []

    def __len__(self) -> int:
        return len(self._keys)

    def append(self, member: Member) -> None:
        """Add a row.

        Raises:
            Unreadable, SourceError: the image cannot be read (see ``decode_member``), or has another size.
        """
        member = member._replace(content=_read_member(member))
        pixels, shape = decode_member(member, self._format.size_px), self._format.image_shape
        if pixels.shape != shape:
            raise SourceError(
                f"{member.key} is {pixels.shape[1]} x {pixels.shape[0]} px where the images before it are"
                f" {shape[1]} x {shape[0]}: give the store one size with --size-px {min(shape[:2])}"
            )
        image = pixels if self._format.encoding == "raw" else _to_jpeg(member.content, pixels)
        self._images.append(image)
        self.num_bytes += len(image) if isinstance(image, bytes) else image.nbytes
        self._labels.append(None if member.label == NO_LABEL else member.label)
        self._keys.append(to_unicode(member.key))

    def columns(self) -> list[pa.Array]:
        """Return the columns image, label and key."""
        if self._format.encoding == "raw":
            images = pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack(self._images))
        else:
            images = pa.array(self._images, pa.binary())
        return [images, pa.array(self._labels, pa.int32()), pa.array(self._keys, pa.string())]


def _to_jpeg(content: bytes | File | np.ndarray, pixels: np.ndarray) -> bytes:
    """Return an image as a JPEG file: the file itself if it is one of the right size, which loses nothing."""
    if isinstance(content, bytes) and is_plain_jpeg(content, (pixels.shape[1], pixels.shape[0])):
        return content
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _write_batch(
    writer: pa.RecordBatchFileWriter, sink: pa.PythonFile, schema: pa.Schema, batch: _RecordBatchBuilder
) -> _BatchSpan:
    # the first write puts the file's header before the record batch
    start = sink.tell() or len(_MAGIC) + schema.serialize().size
    writer.write_batch(pa.RecordBatch.from_arrays(batch.columns(), schema=schema))
    return _BatchSpan(len(batch), start, sink.tell())


def _checksum_shard(path: Path, name: str, batches: list[_BatchSpan]) -> ShardEntry:
    """Read a shard's file and return its entry for the manifest, which calls it ``name``."""
    entries, whole = list[BatchEntry](), xxhash.xxh3_64()
    with path.open("rb") as file:  # not a memory map, whose pages would count as the writer's memory
        for rows, start, stop in batches:
            whole.update(file.read(start - file.tell()))
            content = file.read(stop - start)
            whole.update(content)
            entries.append(BatchEntry(rows=rows, offset=start, length=stop - start, xxh3=checksum(content)))
        whole.update(file.read())
        size = file.tell()
    total = sum(batch.rows for batch in entries)
    return ShardEntry(file=name, rows=total, bytes=size, xxh3=whole.hexdigest(), batches=tuple(entries))
