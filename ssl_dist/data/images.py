"""The images that a run trains on: what training needs of them, and the store that holds them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import numpy as np

from ssl_dist.settings import DataConfig
from ssl_dist.store import ImageStore


class Images(Protocol):
    """The part of ``ImageStore`` that training uses, so that images in memory can stand in for a store."""

    def __len__(self) -> int: ...

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def shard_rows(self) -> np.ndarray: ...

    def prepare(self, now: Collection[int], soon: Collection[int]) -> None: ...

    def gather(self, ids: np.ndarray) -> np.ndarray: ...

    def intact(self, ids: np.ndarray) -> np.ndarray: ...


def open_store(data: DataConfig, path: str | None = None) -> ImageStore:
    """Open the run's store, or the one at ``path`` with the run's cache.

    Raises:
        StoreError: there is no store.
    """
    damaged = data.damaged if path is None else "refuse"
    return ImageStore(path or data.store, damaged=damaged, cache=data.cache, cache_gb=data.cache_gb)
