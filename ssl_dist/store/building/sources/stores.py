"""Existing stores as a source: to merge them, or to build a store of another size or encoding, or of a part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import xxhash

from ssl_dist.errors import StoreError
from ssl_dist.store.building.sources.base import Member, Source
from ssl_dist.store.image_store import ImageStore
from ssl_dist.store.schema import MANIFEST, NO_LABEL


def list_stores(name: str, paths: Sequence[Path]) -> Source:
    """List the images of stores, in the order of the stores; classes with the same name become one class.

    Raises:
        StoreError: one of them is no store, or their images differ in size or encoding.
    """
    stores = [ImageStore(path) for path in paths]
    first = stores[0]
    for store in stores[1:]:
        for field in ("image_shape", "encoding"):
            expected, found = getattr(first.manifest, field), getattr(store.manifest, field)
            if expected != found:
                raise StoreError(f"{first.name} has {field} {expected} and {store.name} {found}: build one again")
    names = tuple(dict.fromkeys(name for store in stores for name in store.class_names))

    def members() -> Iterator[Member]:
        for store in stores:
            numbers = {label: names.index(name) for label, name in enumerate(store.class_names)}
            for key, label, content in store.rows():
                yield Member(key, numbers.get(label, NO_LABEL), content)

    digest = xxhash.xxh3_64_hexdigest(b"".join((path / MANIFEST).read_bytes() for path in paths))
    return Source(name, sum(map(len, stores)), (), names, digest, members)
