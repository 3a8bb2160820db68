"""One column of a local store's shards, read without the others: the pages of the images are not touched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from ssl_dist.errors import StoreError
from ssl_dist.store.decode import decode
from ssl_dist.store.schema import ShardEntry

Column: TypeAlias = pa.Array


def read_column(path: Path, shard: ShardEntry, name: str) -> Iterator[Column]:
    """Yield a column of each record batch of a shard, whose bytes are not compared with their checksums.

    Args:
        path: the shard's file.

    Raises:
        StoreError: the file cannot be read, or is not what its entry says.
    """
    try:
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file)
            for index, batch in enumerate(shard.batches):
                column = reader.get_batch(index).column(name)
                column.validate(full=True)
                if len(column) != batch.rows:
                    raise ValueError(f"record batch {index} has {len(column)} rows")
                yield column
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise StoreError(f"{path} cannot be read ({error}): `ssl-dist store verify` lists all damage") from None


def pixels_at(images: Column, rows: np.ndarray) -> np.ndarray:
    """Return the pixels, uint8 ``[n, H, W, 3]``, of these rows of a column of images."""
    some = images.take(pa.array(rows))
    if isinstance(some, pa.FixedShapeTensorArray):
        pixels: np.ndarray = some.to_numpy_ndarray()
        return pixels
    return np.stack([decode(image.as_py(), None) for image in some])
