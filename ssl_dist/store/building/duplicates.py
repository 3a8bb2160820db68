"""Find images that a store has already: equal in their key and their pixels.

Keys are compared by their hashes, 16 bytes of memory for each image of the store. Only where a key is there already are
the stored images read and compared.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xxhash

from ssl_dist.errors import SourceError
from ssl_dist.store.building.columns import Column, pixels_at, read_column
from ssl_dist.store.building.sources.base import key_form
from ssl_dist.store.image_store import ImageStore
from ssl_dist.store.schema import ShardEntry

_PAIRS = 64  # images compared at a time
_NAMED = 3  # images that a message names


class KnownImages:
    """The images of a store, to which others are to be added.

    Args:
        store: its folder.
    """

    def __init__(self, store: Path) -> None:
        self._folder, self._store = store, ImageStore(store)
        shards = self._store.manifest.shards
        columns = (keys for shard in shards for keys in read_column(store / shard.file, shard, "key"))
        hashes = np.concatenate([_hashes(keys) for keys in columns])
        self._ids = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._ids]  # uint64 [n], ascending

    def refusal(self, shard: ShardEntry) -> SourceError | None:
        """Return the error that names the images of a new shard that the store has already; None: there are none."""
        found, path = list[str](), self._folder / shard.file
        columns = (read_column(path, shard, name) for name in ("key", "image"))
        for keys, images in zip(*columns, strict=True):
            found += [keys[row].as_py() for row in self._known_rows(_hashes(keys), images)]
        if not found:
            return None
        more = f" and {len(found) - _NAMED:,} more" if len(found) > _NAMED else ""
        return SourceError(
            f"{self._folder} has {', '.join(found[:_NAMED])}{more} already, with the same pixels: leave out what is"
            " there, or add it once more with --allow-duplicates"
        )

    def _known_rows(self, hashes: np.ndarray, images: Column) -> list[int]:
        """Return the rows of a record batch whose images are known, in ascending order."""
        first, stop = (np.searchsorted(self._hashes, hashes, side) for side in ("left", "right"))
        rows = np.repeat(np.arange(len(hashes)), stop - first)  # a row for each stored image that has its key
        ids = self._ids[[place for one, end in zip(first, stop, strict=True) for place in range(one, end)]]
        known = set[int]()
        for start in range(0, len(rows), _PAIRS):
            some, there = rows[start : start + _PAIRS], self._store.gather(ids[start : start + _PAIRS])
            is_same = (pixels_at(images, some) == there).all(axis=(1, 2, 3))
            known.update(some[is_same].tolist())
        return sorted(known)


def _hashes(keys: Column) -> np.ndarray:
    """Return uint64 ``[n]``."""
    return np.array([xxhash.xxh3_64_intdigest(key_form(key.as_py()).encode()) for key in keys], dtype=np.uint64)
