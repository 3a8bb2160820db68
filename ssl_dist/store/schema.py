"""The format of a store on disk: the Arrow schema of its shards, and the manifest that names them.

    STORE/
      manifest.json          renamed into place last: a reader sees the old store or the new one
      shard-00000.arrow      Arrow IPC file; record batches of BATCH_ROWS rows, or fewer if the images are large
      ...
      labels-CHECKSUM.npy    labels that replace those in the shards, if `store label` has given any

Columns: ``image`` fixed_shape_tensor(uint8, [H, W, 3]) or binary (JPEG), ``label`` int32 (null: none), ``key`` string
(the image's path in its source). Any Arrow reader opens the shards. The checksums are in the manifest, because Arrow
files have none.
"""

from __future__ import annotations

import builtins
import json
import operator
import struct
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pydantic
import xxhash

from ssl_dist.errors import StoreError
from ssl_dist.files import write_text
from ssl_dist.store.decode import ALPHA_PATTERN, MAX_PIXELS, MAX_SIDE_PX

MANIFEST = "manifest.json"
BATCH_ROWS = 512
_MAX_ROWS = 2**40
NO_BATCH = -1  # stands for a shard's Arrow header and footer, outside its record batches: damage there loses no row
NO_LABEL = -1  # the label of an image without one; null in the shards

Encoding = Literal["raw", "jpeg"]


class _Record(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class BatchEntry(_Record):
    """A record batch: number of rows, and checksum (xxh3-64, hexadecimal) of the bytes [offset, offset + length)."""

    rows: int = pydantic.Field(gt=0)
    offset: int = pydantic.Field(ge=0)
    length: int = pydantic.Field(gt=0)
    xxh3: str


class ShardEntry(_Record):
    """A shard file: its name inside the store, rows, bytes, checksum of the whole file, and record batches."""

    file: str = pydantic.Field(pattern=r"^shard-\d{5,}\.arrow$")
    rows: int = pydantic.Field(gt=0)
    bytes: int = pydantic.Field(gt=0)
    xxh3: str = pydantic.Field(pattern=r"^[0-9a-f]{16}$")  # it becomes a file name in a cache
    batches: tuple[BatchEntry, ...]


class LabelsEntry(_Record):
    """A file of labels that replace those in the shards: an array int32 ``[rows]``, as NumPy saves it.

    Attributes:
        file: its name inside the store.
        rows: the images that it has labels of, from the first on; those of later shards are in the shards.
        bytes: its size.
        xxh3: its checksum.
        shard_classes: number of classes of the labels that it replaces.
    """

    file: str = pydantic.Field(pattern=r"^labels-[0-9a-f]{16}\.npy$")
    rows: int = pydantic.Field(gt=0)
    bytes: int = pydantic.Field(gt=0)
    xxh3: str
    shard_classes: int = pydantic.Field(ge=0)


class Manifest(_Record):
    """The contents of manifest.json.

    ``image_shape`` is (H, W, 3). ``alpha`` says what was done with transparency (see ``decode``); None, in old stores
    and those made of them: it was dropped. ``skipped`` counts files that were left out, ``one_colour`` images whose
    pixels are all the same. None and 0 are left out of the file, so that old stores keep their checksum.
    """

    format: Literal["ssl_dist.store/1"] = "ssl_dist.store/1"
    split: str
    encoding: Encoding
    image_shape: tuple[int, int, int]
    resize: str
    alpha: str | None = pydantic.Field(None, pattern=ALPHA_PATTERN, exclude_if=operator.not_)
    class_names: tuple[str, ...]
    rows: int = pydantic.Field(gt=0)
    bytes: int = pydantic.Field(gt=0)
    skipped: int = pydantic.Field(ge=0)
    one_colour: int = pydantic.Field(0, ge=0, exclude_if=operator.not_)
    shards: tuple[ShardEntry, ...] = pydantic.Field(min_length=1)
    labels: LabelsEntry | None = pydantic.Field(None, exclude_if=operator.not_)
    made_of: str | None = None  # digest of the source and settings of the last build or append; None in old stores
    xxh3: str | None = None  # checksum of all other fields; None in old stores

    @pydantic.model_validator(mode="after")
    def _adds_up(self) -> Manifest:
        if min(self.image_shape) < 1 or max(self.image_shape) > MAX_SIDE_PX or self.image_shape[2] != 3:
            raise ValueError(f"image_shape {self.image_shape}: (H, W, 3), of at most {MAX_SIDE_PX} px a side")
        height, width, channels = self.image_shape
        if self.encoding == "jpeg" and height * width > MAX_PIXELS:
            raise ValueError(f"image_shape {self.image_shape}: a JPEG has at most {MAX_PIXELS} pixels")
        # A reader allocates memory by these numbers, so the bytes must exist: 4 a row for a label, 4 for a key's end.
        row_bytes = 8 + (height * width * channels if self.encoding == "raw" else 4)
        for shard in self.shards:
            if shard.rows != sum(batch.rows for batch in shard.batches):
                raise ValueError(f"{shard.file} has {shard.rows} rows, but its record batches have another number")
            for batch in shard.batches:
                if batch.rows * row_bytes > batch.length or batch.offset + batch.length > shard.bytes:
                    raise ValueError(f"{shard.file} has a record batch of {batch.rows} rows in too few bytes")
        if (total := sum(shard.rows for shard in self.shards)) != self.rows or total > _MAX_ROWS:
            raise ValueError(f"rows {self.rows}: the shards have {total}")
        if self.labels and not 4 * self.labels.rows <= self.labels.bytes <= 4 * self.rows + 4096:
            raise ValueError(f"{self.labels.file} has {self.labels.bytes} bytes for {self.labels.rows} labels")
        if self.xxh3 not in (None, self._digest()):
            raise ValueError("it differs from its own checksum")
        return self

    def _digest(self) -> str:
        return xxhash.xxh3_64_hexdigest(self.model_dump_json(exclude={"xxh3"}).encode())

    def with_checksum(self) -> Manifest:
        """Return a copy with its own checksum filled in."""
        return self.model_copy(update={"xxh3": self._digest()})

    def write(self, store: Path) -> None:
        """Write manifest.json, whole or not at all."""
        write_text(store / MANIFEST, self.model_dump_json(indent=1), durable=True)

    @classmethod
    def read(cls, store: Path) -> Manifest:
        """Load and validate manifest.json.

        Raises:
            StoreError: there is no store, or this version cannot read its manifest.
        """
        path = store / MANIFEST
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            names = f"{store} STORE" if store.exists() else f"SOURCE {store}"
            raise StoreError(
                f"{store} is not a store (no {MANIFEST}): make one with `ssl-dist store build {names}`"
            ) from None
        except OSError as error:
            raise StoreError(f"{path} cannot be read ({error}): build the store again") from None
        return cls.parse(content, str(path))

    @classmethod
    def parse(cls, content: builtins.bytes, name: str) -> Manifest:
        """Validate the bytes of a manifest.json, which messages call ``name``; raise StoreError as ``read`` does."""
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
    """Return the xxh3-64 of bytes, or of uint8 ``[n]``, hexadecimal."""
    return xxhash.xxh3_64_hexdigest(content.data if isinstance(content, np.ndarray) else content)


def shard_schema(encoding: Encoding, image_shape: tuple[int, int, int]) -> pa.Schema:
    """Return the only schema that shards of this encoding and image size may have."""
    image = pa.fixed_shape_tensor(pa.uint8(), image_shape) if encoding == "raw" else pa.binary()
    return pa.schema(
        [
            pa.field("image", image, nullable=False),
            pa.field("label", pa.int32()),
            pa.field("key", pa.string(), nullable=False),
        ]
    )


def is_shard_schema(schema: pa.Schema) -> bool:
    """Return whether a schema is that of shards, with any encoding and image size."""
    if schema.names != ["image", "label", "key"]:
        return False
    image = schema.field("image").type
    if isinstance(image, pa.FixedShapeTensorType):
        return bool(schema.equals(shard_schema("raw", tuple(image.shape))))
    return bool(schema.equals(shard_schema("jpeg", (1, 1, 3))))


def parse_record_batch(message: np.ndarray, schema: pa.Schema, num_classes: int) -> pa.RecordBatch:
    """Parse the bytes of a shard's record batch, uint8 ``[n]``. They are not trusted: anyone may have written them.

    Raises:
        pa.ArrowException, ValueError: they are not a record batch, or not one that a shard may have. Refused are
            compression (a few bytes may expand to any amount of memory), rows without an image or a key, and labels
            that are not the number of a class.
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
    """Return whether a record batch is compressed, from the metadata of its message, which is a FlatBuffers table.

    PyArrow does not tell, so the table is parsed here.

    Source: Arrow's format/Message.fbs, ``Message.header`` and ``RecordBatch.compression``; FlatBuffers' internals.
    """
    content = metadata.to_pybytes()

    def field(table: int, number: int) -> int:
        """Return the position of a field of a table; 0: the field is absent."""
        vtable = table - struct.unpack_from("<i", content, table)[0]
        (vtable_bytes,) = struct.unpack_from("<H", content, vtable)
        slot = 4 + 2 * number
        offset = struct.unpack_from("<H", content, vtable + slot)[0] if slot < vtable_bytes else 0
        return table + offset if offset else 0

    try:
        header = field(struct.unpack_from("<I", content)[0], 2)
        return field(header + struct.unpack_from("<I", content, header)[0], 3) != 0
    except struct.error as error:
        raise ValueError(error) from None
