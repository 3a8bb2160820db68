"""Stores as a source: to merge them, or to make one of another size, encoding or part of another."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import xxhash

from ssl_dist.errors import StoreError
from ssl_dist.store.building.sources.base import Member, Source
from ssl_dist.store.image_store import ImageStore
from ssl_dist.store.schema import MANIFEST, NO_LABEL


def of_stores(name: str, paths: Sequence[Path]) -> Source:
    """The images of stores, one after the other; classes of one name are one class.

    Raises:
        StoreError: one is no store, or their images differ in size or encoding.
    """
    stores = [ImageStore(path) for path in paths]
    first = stores[0]
    for store in stores[1:]:
        for what in ("image_shape", "encoding"):
            ours, theirs = getattr(first.manifest, what), getattr(store.manifest, what)
            if ours != theirs:
                raise StoreError(f"{first.name} has {what} {ours} and {store.name} {theirs}: build one of them anew")
    names = tuple(dict.fromkeys(name for store in stores for name in store.class_names))

    def members() -> Iterator[Member]:
        for store in stores:
            numbers = {label: names.index(name) for label, name in enumerate(store.class_names)}
            for key, label, content in store.rows():
                yield Member(key, numbers.get(label, NO_LABEL), content)

    digest = xxhash.xxh3_64_hexdigest(b"".join((path / MANIFEST).read_bytes() for path in paths))
    return Source(name, sum(map(len, stores)), (), names, digest, members)


def is_store(path: Path) -> bool:
    return os.path.isfile(path / MANIFEST)
