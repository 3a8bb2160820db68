"""What a store is on disk: the Arrow schema of its shards and the manifest that names them.

    STORE/
      manifest.json          renamed into place last: a reader sees the old store or the new one
      shard-00000.arrow      Arrow IPC file; record batches of BATCH_ROWS rows
      ...

Columns: ``image`` fixed_shape_tensor(uint8, [H, W, 3]) or binary (JPEG), ``label`` int32 (null: none), ``key`` string
(the image's path in its source). Any Arrow reader opens the shards; the checksums are ours, Arrow has none.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pydantic
import xxhash

from ssl_dist.errors import StoreError

MANIFEST = "manifest.json"
BATCH_ROWS = 512
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
    xxh3: str
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
    shards: tuple[ShardEntry, ...]

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
            return cls.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError(
                f"{store} is not a store (no {MANIFEST}): make one with `ssl-dist store build SRC {store}`"
            ) from None
        except (ValueError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise StoreError(f"{path} cannot be read ({reason}): build the store again") from None


def checksum(content: np.ndarray) -> str:
    """xxh3-64 of uint8 ``[n]``, hexadecimal."""
    return xxhash.xxh3_64_hexdigest(content.data)


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
