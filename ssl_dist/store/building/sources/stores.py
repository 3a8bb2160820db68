"""Existing stores as a source: to merge them, or to build a store of another size or encoding, or of a part."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import xxhash

from ssl_dist.errors import StoreError, printable
from ssl_dist.store.building.sources.base import Member, Source, Treatment, class_name
from ssl_dist.store.decode import MIXED, combine_alpha, describe_alpha, describe_resize
from ssl_dist.store.image_store import ImageStore
from ssl_dist.store.schema import MANIFEST, NO_LABEL

log = logging.getLogger(__name__)


def list_stores(name: str, paths: Sequence[Path]) -> Source:
    """List the images of stores, in the order of the stores; classes with the same name become one class.

    Where some stores resized their images and others kept them at the same size, all are as the resizing leaves them.
    Where the stores treated transparency in different ways, the listing says "mixed", and a warning which did what.

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
    by_form = dict[str, str]()
    for store in stores:
        for class_ in store.class_names:
            by_form.setdefault(class_name(class_), class_)
    numbers_of = {form: number for number, form in enumerate(by_form)}

    def members() -> Iterator[Member]:
        for store in stores:
            numbers = {label: numbers_of[class_name(one)] for label, one in enumerate(store.class_names)}
            for key, label, content in store.rows():
                yield Member(key, numbers.get(label, NO_LABEL), content)

    digest = xxhash.xxh3_64_hexdigest(b"".join((path / MANIFEST).read_bytes() for path in paths))
    kept = describe_resize(None)
    resize = next((store.manifest.resize for store in stores if store.manifest.resize != kept), kept)
    treatment = Treatment(resize, combine_alpha([store.manifest.alpha for store in stores]))
    if treatment.alpha == MIXED:
        found = ", ".join(f"{store.name}: {describe_alpha(store.manifest.alpha)}" for store in stores)
        log.warning("transparency differs (%s): appended images will be composited onto white", printable(found))
    return Source(name, sum(map(len, stores)), tuple(by_form.values()), digest, members, treatment=treatment)
