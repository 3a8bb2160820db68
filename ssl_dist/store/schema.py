"""What a store is on disk: the Arrow schema of its shards and the manifest that names them.

    STORE/
      manifest.json          renamed into place last: a reader sees the old store or the new one
      shard-00000.arrow      Arrow IPC file; record batches of BATCH_ROWS rows, or fewer of large images
      ...

Columns: ``image`` fixed_shape_tensor(uint8, [H, W, 3]) or binary (JPEG), ``label`` int32 (null: none), ``key`` string
(the image's path in its source). Any Arrow reader opens the shards; the checksums are ours, Arrow has none.
"""

from __future__ import annotations

import builtins
import json
import os
import struct
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pydantic
import xxhash

from ssl_dist.errors import StoreError
from ssl_dist.store.decode import MAX_PIXELS, MAX_PX

MANIFEST = "manifest.json"
BATCH_ROWS = 512
_MOST_ROWS = 2**40
NO_BATCH = -1  # damage in a shard's Arrow header or footer, outside its record batches: no row is lost
NO_LABEL = -1  # of an image that has none; null in the shards

Encoding = Literal["raw", "jpeg"]


class _Record(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class BatchEntry(_Record):
    """One record batch: rows, and the checksum (xxh3-64, hexadecimal) of its bytes [offset, offset + length)."""

    rows: int = pydantic.Field(gt=0)
    offset: int = pydantic.Field(ge=0)
    length: int = pydantic.Field(gt=0)
    xxh3: str


class ShardEntry(_Record):
    """One shard file: its name inside the store, rows, bytes, checksum of the whole file, and record batches."""

    file: str = pydantic.Field(pattern=r"^shard-\d{5,}\.arrow$")
    rows: int = pydantic.Field(gt=0)
    bytes: int = pydantic.Field(gt=0)
    xxh3: str = pydantic.Field(pattern=r"^[0-9a-f]{16}$")  # a file's name in a cache
    batches: tuple[BatchEntry, ...]


class Manifest(_Record):
    """What ``build`` made; ``image_shape`` is (H, W, 3)."""

    format: Literal["ssl_dist.store/1"] = "ssl_dist.store/1"
    split: str
    encoding: Encoding
    image_shape: tuple[int, int, int]
    resize: str
    class_names: tuple[str, ...]
    rows: int = pydantic.Field(gt=0)
    bytes: int = pydantic.Field(gt=0)
    skipped: int = pydantic.Field(ge=0)
    shards: tuple[ShardEntry, ...] = pydantic.Field(min_length=1)
    made_of: str | None = None  # digest of the source and settings of the last build or append; None: an older store
    xxh3: str | None = None  # of all the rest; None: an older store

    @pydantic.model_validator(mode="after")
    def _adds_up(self) -> Manifest:
        if min(self.image_shape) < 1 or max(self.image_shape) > MAX_PX or self.image_shape[2] != 3:
            raise ValueError(f"image_shape {self.image_shape}: (H, W, 3), of at most {MAX_PX} px a side")
        height, width, channels = self.image_shape
        if self.encoding == "jpeg" and height * width > MAX_PIXELS:
            raise ValueError(f"image_shape {self.image_shape}: a JPEG has at most {MAX_PIXELS} pixels")
        # what a reader takes memory for must be there: labels and keys' ends take 4 bytes each
        row_bytes = 8 + (height * width * channels if self.encoding == "raw" else 4)
        for shard in self.shards:
            if shard.rows != sum(batch.rows for batch in shard.batches):
                raise ValueError(f"{shard.file} has {shard.rows} rows, and its record batches do not")
            for batch in shard.batches:
                if batch.rows * row_bytes > batch.length or batch.offset + batch.length > shard.bytes:
                    raise ValueError(f"{shard.file} has a record batch of {batch.rows} rows that it has no room for")
        if (total := sum(shard.rows for shard in self.shards)) != self.rows or total > _MOST_ROWS:
            raise ValueError(f"rows {self.rows}: the shards have {total}")
        if self.xxh3 not in (None, self._digest()):
            raise ValueError("it differs from its own checksum")
        return self

    def _digest(self) -> str:
        return xxhash.xxh3_64_hexdigest(self.model_dump_json(exclude={"xxh3"}).encode())

    def sealed(self) -> Manifest:
        """With its own checksum."""
        return self.model_copy(update={"xxh3": self._digest()})

    def write(self, store: Path) -> None:
        """Put the manifest in place, whole or not at all."""
        aside = store / f"{MANIFEST}.{os.getpid()}.tmp"
        with aside.open("w", encoding="utf-8") as file:
            file.write(self.model_dump_json(indent=1))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(store / MANIFEST)

    @classmethod
    def read(cls, store: Path) -> Manifest:
        """Load and validate.

        Raises:
            StoreError: no store there, or its manifest is not one that this version reads.
        """
        path = store / MANIFEST
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError(
                f"{store} is not a store (no {MANIFEST}): make one with `ssl-dist store build SRC {store}`"
            ) from None
        except OSError as error:
            raise StoreError(f"{path} cannot be read ({error}): build the store again") from None
        return cls.parse(content, str(path))

    @classmethod
    def parse(cls, content: builtins.bytes, name: str) -> Manifest:
        """From the bytes of its file, which messages call ``name``. Raises as ``read``."""
        try:
            return cls.model_validate(json.loads(content.decode("utf-8")))
        except (ValueError, RecursionError) as error:
            raise StoreError(f"{name} cannot be read ({_reason(error)}): build the store again") from None


def _reason(error: Exception) -> str:
    if isinstance(error, pydantic.ValidationError):
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        return f"{where}: {first['msg']}" if where else first["msg"].removeprefix("Value error, ")
    return str(error).splitlines()[0]


def checksum(content: np.ndarray | bytes) -> str:
    """xxh3-64 of uint8 ``[n]``, hexadecimal."""
    return xxhash.xxh3_64_hexdigest(content.data if isinstance(content, np.ndarray) else content)


def shard_schema(encoding: Encoding, image_shape: tuple[int, int, int]) -> pa.Schema:
    """The one schema that shards of this encoding and image size may have."""
    image = pa.fixed_shape_tensor(pa.uint8(), image_shape) if encoding == "raw" else pa.binary()
    return pa.schema(
        [
            pa.field("image", image, nullable=False),
            pa.field("label", pa.int32()),
            pa.field("key", pa.string(), nullable=False),
        ]
    )


def is_of_shard(schema: pa.Schema) -> bool:
    """Is it a shard's, of whatever encoding and image size?"""
    if schema.names != ["image", "label", "key"]:
        return False
    image = schema.field("image").type
    if isinstance(image, pa.FixedShapeTensorType):
        return bool(schema.equals(shard_schema("raw", tuple(image.shape))))
    return bool(schema.equals(shard_schema("jpeg", (1, 1, 3))))


def record_batch(message: np.ndarray, schema: pa.Schema, num_classes: int) -> pa.RecordBatch:
    """The record batch of a shard, from its bytes, uint8 ``[n]``, which may be anybody's.

    Raises:
        pa.ArrowException, ValueError: it is none, or not such as a shard has: compressed, so that it may take more
            memory than it has bytes; with a row that has no image or key; with a label that stands for no class.
    """
    buffer = pa.py_buffer(message)
    if _is_compressed(pa.ipc.read_message(buffer).metadata):
        raise ValueError("it is compressed")
    batch = pa.ipc.read_record_batch(buffer, schema)
    batch.validate(full=True)
    if batch.column("image").null_count or batch.column("key").null_count:
        raise ValueError("it has a row without an image or a key")
    labels = pc.min_max(batch.column("label"))
    if labels["min"].is_valid and not 0 <= labels["min"].as_py() <= labels["max"].as_py() < num_classes:
        raise ValueError(f"it has labels that are not 0 to {num_classes - 1}")
    return batch


def _is_compressed(metadata: pa.Buffer) -> bool:
    """Of an Arrow record batch's message, which is a FlatBuffers table.

    Source: Arrow's format/Message.fbs, ``Message.header`` and ``RecordBatch.compression``; FlatBuffers' internals.
    """
    content = metadata.to_pybytes()

    def field(table: int, number: int) -> int:
        """Where it lies; 0: it is not there."""
        places = table - struct.unpack_from("<i", content, table)[0]
        (size,) = struct.unpack_from("<H", content, places)
        place = 4 + 2 * number
        offset = struct.unpack_from("<H", content, places + place)[0] if place < size else 0
        return table + offset if offset else 0

    try:
        header = field(struct.unpack_from("<I", content)[0], 2)
        return field(header + struct.unpack_from("<I", content, header)[0], 3) != 0
    except struct.error as error:
        raise ValueError(error) from None
