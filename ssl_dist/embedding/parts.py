"""The parts of an embedding: files beside the table that is made, each written whole, so that a kill costs only one.

A part holds the features of consecutive images. Images are cut in their order into parts, and parts into blocks, which
become row groups of the table: both are the same whoever computes them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import starmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from ssl_dist.errors import RunError
from ssl_dist.files import replacing
from ssl_dist.store.building.sources import LeftOut
from ssl_dist.store.schema import NO_LABEL

PART_ROWS = 1024  # at most; it is a multiple of the images of a forward pass
BLOCK_PARTS = 8
LOCK = "lock"
PACKAGES = ("torch", "pillow", "numpy", "pyarrow")  # the bytes of a part depend on their versions
_META = b"part"


class Done(NamedTuple):
    """A part that is written: the number of its images, of its rows, and the images that have no row."""

    num_images: int
    num_rows: int
    left_out: list[LeftOut]


class Parts:
    """The files of the parts in their folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def token(self) -> str:
        """Return the line of the lock file as this machine sees it, which differs for each call; "": there is none."""
        try:
            return (self.folder / LOCK).read_text(encoding="utf-8")
        except OSError:
            return ""

    def features(self, number: int) -> Path:
        """Return the file of a part's features."""
        return self.folder / f"features-{number:06d}.parquet"

    def neighbours(self, count: int, block: int) -> Path:
        """Return the file of the neighbours, ``count`` for each image, of a block."""
        return self.folder / f"neighbours-{count}-{block:06d}.parquet"

    def num_images_done(self) -> int:
        """Return the number of images in the parts that are there, by what these say."""
        found = (read_meta(path) for path in self.folder.glob("features-*.parquet"))
        return sum(done.num_images for done in found if done)

    def row_counts(self, num_parts: int) -> np.ndarray:
        """Return the number of rows of each part, int64 ``[num_parts]``."""
        counts = [self._expect(read_meta(self.features(number)), number).num_rows for number in range(num_parts)]
        return np.array(counts, dtype=np.int64)

    def table(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the table of a part's features, or some of its columns."""
        return self._expect(read_part(self.features(number), columns=columns), number)

    def block_features(self, block: int, num_parts: int) -> np.ndarray:
        """Return the features of a block of parts, float32 ``[n, D]``."""
        return np.concatenate([embeddings(self.table(part, ["embedding"])) for part in parts_of(block, num_parts)])

    def keys_at(self, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Return the keys of rows, which are numbered over all parts; an array of text of the shape of ``rows``.

        Args:
            counts: the number of rows of each part.
        """
        wanted, places = np.unique(rows, return_inverse=True)
        stops = counts.cumsum()
        part_of = np.searchsorted(stops, wanted, side="right")
        keys = np.empty(len(wanted), dtype=object)
        for part in np.unique(part_of).tolist():
            here = part_of == part
            column = self.table(part, ["key"])["key"]
            keys[here] = column.take(wanted[here] - (stops[part] - counts[part])).to_pylist()
        return keys[places].reshape(rows.shape)

    def _expect(self, found: Any, number: int) -> Any:
        if found is None:
            raise RunError(f"{self.features(number)} is damaged or gone: call again to compute it anew")
        return found


def num_blocks(num_parts: int) -> int:
    """Return the number of blocks of so many parts."""
    return -(-num_parts // BLOCK_PARTS)


def parts_of(block: int, num_parts: int) -> range:
    """Return the numbers of the parts of a block."""
    return range(block * BLOCK_PARTS, min((block + 1) * BLOCK_PARTS, num_parts))


def feature_table(keys: Sequence[str], labels: np.ndarray, features: np.ndarray) -> pa.Table:
    """Return a table of keys, labels (NO_LABEL becomes null) and features, float32 ``[n, D]``."""
    values = pa.array(np.ascontiguousarray(features).reshape(-1), pa.float32())
    columns = {
        "key": pa.array(keys, pa.string()),
        "label": pa.array(labels, pa.int32(), mask=labels == NO_LABEL),
        "embedding": pa.FixedSizeListArray.from_arrays(values, features.shape[1]),
    }
    return pa.table(columns)


def neighbour_table(keys: np.ndarray, similarities: np.ndarray) -> pa.Table:
    """Return a table of the keys and the float32 similarities of the nearest others, ``[n, k]`` each."""
    offsets = pa.array(np.arange(len(keys) + 1) * keys.shape[1], pa.int32())
    lists = {"neighbours": pa.array(keys.reshape(-1), pa.string())}
    lists["similarities"] = pa.array(similarities.reshape(-1), pa.float32())
    return pa.table({name: pa.ListArray.from_arrays(offsets, values) for name, values in lists.items()})


def embeddings(table: pa.Table) -> np.ndarray:
    """Return the column of features as float32 ``[n, D]``, a copy that may be written."""
    column = table["embedding"].combine_chunks()
    return np.array(column.flatten()).reshape(len(column), column.type.list_size)


def write_part(path: Path, table: pa.Table, num_images: int, left_out: Sequence[LeftOut]) -> Done:
    """Write a part, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    meta = json.dumps({"num_images": num_images, "left_out": left_out})
    with replacing(path, durable=True) as aside:
        parquet.write_table(
            table.replace_schema_metadata({_META: meta}), aside, compression="none", write_page_checksum=True
        )
    return Done(num_images, table.num_rows, list(left_out))


def read_part(path: Path, num_images: int | None = None, columns: Sequence[str] | None = None) -> pa.Table | None:
    """Return a part's table; None where it is not there, is damaged, or is not of ``num_images`` images."""
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            done = _done(file.schema_arrow.metadata, file.metadata.num_rows)
            return file.read(columns) if num_images in (None, done.num_images) else None
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None


def read_meta(path: Path) -> Done | None:
    """Return what a part says of itself; None where it is not there or is damaged."""
    try:
        schema, meta = parquet.read_schema(path), parquet.read_metadata(path)
        return _done(schema.metadata, meta.num_rows)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None


def _done(metadata: dict[bytes, bytes], num_rows: int) -> Done:
    content = json.loads(metadata[_META])
    left_out = list(starmap(LeftOut, content["left_out"]))
    return Done(int(content["num_images"]), num_rows, left_out)
