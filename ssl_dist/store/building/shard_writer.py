"""Write one shard: members of a source -> decoded, resized, checksummed record batches of one Arrow file.

A writer, wherever it runs, writes under a name that nobody else uses; the process that has the store's lock gives the
shard its own. So a writer that outlives its build, or that was taken for lost and runs twice, touches nothing of the
store. Beside each shard of an unfinished store lies a note of what is in it, so that a build which was killed goes on
after the shards that it has.
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
from ssl_dist.store.building.sources import File, Member
from ssl_dist.store.building.sources.base import text
from ssl_dist.store.decode import decode, is_plain_jpeg, resize
from ssl_dist.store.schema import NO_LABEL, BatchEntry, Encoding, ShardEntry, checksum, shard_schema

JPEG_QUALITY = 90
BATCH_BYTES = 2 << 20  # of images: a record batch, which is checked as a whole when a row is touched, ends there
# Held by a writer and written at a time: where kernel and file system have large pages for files, what is written in
# large parts is cached in them, and mapped by them.
_WRITE_BYTES = 16 << 20
_MAGIC = b"ARROW1\0\0"  # opens an Arrow IPC file; the schema's message follows


class Shard(pydantic.BaseModel):
    """What a writer hands back: how many members it took, the entry (None if no image was readable) and what it left
    out, as (key, reason)."""

    members: int
    entry: ShardEntry | None = None
    skipped: list[tuple[str, str]] = []


class Form(pydantic.BaseModel):
    """How images are kept: their encoding, (H, W, 3), the side they are resized to (None: they have that size), and how
    many are a record batch."""

    encoding: Encoding
    image_shape: tuple[int, int, int]
    size_px: int | None
    batch_rows: int


class Piece(NamedTuple):
    """What a writer is given: the members of one shard, the path that it will have, and how images are kept."""

    members: list[Member]
    path: Path
    form: Form

    @property
    def held_bytes(self) -> int:
        """What its members take in memory."""
        return sum(member.held_bytes for member in self.members)


class Written(NamedTuple):
    """A shard, its path, and the file that waits to be given that name (None: it has it, or no image was readable)."""

    path: Path
    shard: Shard
    aside: Path | None


def write_shard(piece: Piece) -> Written:
    """Decode some members and write their shard, which ``put_in_place`` then gives its name; runs in any process of any
    machine that has the store's folder.

    Raises:
        SourceError: images of several sizes where there should be one, or a file that can be read only perhaps.
        OSError: it cannot be written.
    """
    aside = piece.path.with_name(f".{piece.path.stem}.{uuid.uuid4().hex}.tmp")
    try:
        with aside.open("wb", buffering=_WRITE_BYTES) as file:
            shard, batches = _write_rows(file, piece)
            file.flush()
            os.fsync(file.fileno())
        if batches:
            shard.entry = _sealed(aside, piece.path.name, batches)
            return Written(piece.path, shard, aside)
    except BaseException:
        aside.unlink(missing_ok=True)  # a full disk gets its room back
        raise
    aside.unlink()
    return Written(piece.path, shard, None)


def _write_rows(file: IO[bytes], piece: Piece) -> tuple[Shard, list[tuple[int, int, int]]]:
    """The Arrow file; returns what was left out, and (rows, first byte, byte after the last) of each record batch."""
    form, shard, batches = piece.form, Shard(members=len(piece.members)), list[tuple[int, int, int]]()
    schema, rows = shard_schema(form.encoding, form.image_shape), _Rows(form)
    sink = pa.PythonFile(file, mode="w")
    writer = pa.ipc.new_file(sink, schema)
    for member in piece.members:
        try:
            rows.append(member)
        except Unreadable as error:
            shard.skipped.append((text(member.key), str(error)))
            continue
        if len(rows) == form.batch_rows or rows.num_bytes >= BATCH_BYTES:
            batches.append(_flush(writer, sink, schema, rows))
            rows = _Rows(form)
    if len(rows):
        batches.append(_flush(writer, sink, schema, rows))
    writer.close()
    return shard, batches


def put_in_place(written: Written) -> Shard:
    """Give a shard its name and leave the note of it: only who has the store's lock may. Raises OSError."""
    if written.aside:
        written.aside.replace(written.path)
    note = note_of(written.path)
    aside = note.with_suffix(".tmp")
    aside.write_text(written.shard.model_dump_json())
    aside.replace(note)
    return written.shard


def note_of(path: Path) -> Path:
    """Where the note of an unfinished store's shard lies."""
    return path.with_name(f".{path.stem}.json")


def finished(path: Path, num_members: int) -> Shard | None:
    """What the note says of a shard that is there as it was written, from as many members; else None."""
    try:
        shard = Shard.model_validate_json(note_of(path).read_bytes())
        if shard.members != num_members:
            return None
        if shard.entry is None:
            return shard
        batches = [(batch.rows, batch.offset, batch.offset + batch.length) for batch in shard.entry.batches]
        return shard if _sealed(path, path.name, batches) == shard.entry else None
    except (OSError, ValueError):
        return None


def pixels(member: Member, size_px: int | None) -> np.ndarray:
    """uint8 ``[H, W, 3]``.

    Raises:
        Unreadable: it is no image that a store takes.
        SourceError: its file cannot be read now, and perhaps later.
    """
    content = read(member)
    return resize(content, size_px) if isinstance(content, np.ndarray) else decode(content, size_px)


def read(member: Member) -> bytes | np.ndarray:
    """Its content, from its file where that has it. Raises as ``pixels``."""
    if not isinstance(member.content, File):
        return member.content
    try:
        return member.content.read()
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise Unreadable(str(error)) from None
    except OSError as error:  # a network's or a disk's fault is no reason to leave an image out for good
        raise SourceError(f"{member.key} cannot be read ({error}): call again to go on") from None


class _Rows:
    """Rows of the record batch being filled."""

    def __init__(self, form: Form) -> None:
        self._form, self.num_bytes = form, 0
        self._images: list[np.ndarray] = []
        self._files: list[bytes] = []
        self._labels: list[int | None] = []
        self._keys: list[str] = []

    def __len__(self) -> int:
        return len(self._keys)

    def append(self, member: Member) -> None:
        """Raises what ``pixels`` does, and SourceError where the image is of another size."""
        member = member._replace(content=read(member))
        image, shape = pixels(member, self._form.size_px), self._form.image_shape
        if image.shape != shape:
            raise SourceError(
                f"{member.key} is {image.shape[1]} x {image.shape[0]} px where the images before it are"
                f" {shape[1]} x {shape[0]}: give the store one size with --size-px {min(shape[:2])}"
            )
        if self._form.encoding == "raw":
            self._images.append(image)
            self.num_bytes += image.nbytes
        else:
            self._files.append(_jpeg(member.content, image))
            self.num_bytes += len(self._files[-1])
        self._labels.append(None if member.label == NO_LABEL else member.label)
        self._keys.append(text(member.key))

    def arrays(self) -> list[pa.Array]:
        if self._form.encoding == "raw":
            images = pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack(self._images))
        else:
            images = pa.array(self._files, pa.binary())
        return [images, pa.array(self._labels, pa.int32()), pa.array(self._keys, pa.string())]


def _jpeg(content: bytes | File | np.ndarray, image: np.ndarray) -> bytes:
    """A JPEG that is stored as it is loses nothing; anything else is encoded."""
    if isinstance(content, bytes) and is_plain_jpeg(content, (image.shape[1], image.shape[0])):
        return content
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _flush(
    writer: pa.RecordBatchFileWriter, sink: pa.PythonFile, schema: pa.Schema, rows: _Rows
) -> tuple[int, int, int]:
    """Write one record batch; returns (rows, first byte, byte after the last)."""
    # the first write puts the file's header before the batch
    start = sink.tell() or len(_MAGIC) + schema.serialize().size
    writer.write_batch(pa.RecordBatch.from_arrays(rows.arrays(), schema=schema))
    return len(rows), start, sink.tell()


def _sealed(path: Path, name: str, batches: list[tuple[int, int, int]]) -> ShardEntry:
    entries, whole = list[BatchEntry](), xxhash.xxh3_64()
    with path.open("rb") as file:  # not mapped: the pages would count as the writer's memory
        for rows, start, stop in batches:
            whole.update(file.read(start - file.tell()))
            content = file.read(stop - start)
            whole.update(content)
            entries.append(BatchEntry(rows=rows, offset=start, length=stop - start, xxh3=checksum(content)))
        whole.update(file.read())
        size = file.tell()
    total = sum(batch.rows for batch in entries)
    return ShardEntry(file=name, rows=total, bytes=size, xxh3=whole.hexdigest(), batches=tuple(entries))
