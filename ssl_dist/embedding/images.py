"""The images that are embedded: a store's, or those of anything that a store can be built from; cut into parts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import xxhash

from ssl_dist.data.images import store_digest
from ssl_dist.errors import Unreadable
from ssl_dist.store import ImageStore
from ssl_dist.store.building.shard_writer import decode_member
from ssl_dist.store.building.sources import LeftOut, Member, Source, list_source
from ssl_dist.store.building.sources.base import to_unicode
from ssl_dist.store.remote import Bucket
from ssl_dist.store.schema import MANIFEST
from ssl_dist.uris import is_remote, without_secrets

PART_BYTES = 64 << 20  # a part also ends when its images take this much memory before they are decoded

Cut = range | list[Member]
"""The images of a part: sample ids of a store, or members of another source."""


@dataclass(frozen=True)
class Images:
    """The images that are embedded, in their order.

    Attributes:
        name: the absolute path, or the URI without secrets.
        location: the store's absolute path or whole URI; None: it is no store.
        digest: a text that changes when an image, a key or a label changes, or a file of a source that is no store.
        num_images: how many there are, before any is left out.
        class_names: the names that labels are indices into.
        left_out, passed_over: files that do not become images, as of a ``Source``.
    """

    name: str
    location: str | None
    digest: str
    num_images: int
    class_names: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()
    passed_over: tuple[LeftOut, ...] = ()
    source: Source | None = None

    def parts(self, most: int, together: int) -> Iterator[Cut]:
        """Cut the images into parts of at most ``most`` images; each part but the last is a multiple of ``together``.

        Members of tars and tables are held in memory, so a part of large ones has fewer.

        Args:
            most: a multiple of ``together``.
        """
        if self.source is None:
            for first in range(0, self.num_images, most):
                yield range(first, min(first + most, self.num_images))
            return
        part, num_bytes = list[Member](), 0
        for member in self.source.members():
            part.append(member)
            num_bytes += member.memory_bytes
            if len(part) == most or (num_bytes >= PART_BYTES and len(part) % together == 0):
                yield part
                part, num_bytes = [], 0
        if part:
            yield part


def open_images(where: str | os.PathLike[str]) -> Images:
    """List the images of a store, or of what ``list_source`` takes, where the path or URI is no store.

    Raises:
        StoreError, SourceError: there are none, or they cannot be read.
    """
    place = os.fspath(where)
    if not _is_store(place):
        listed = list_source(place)
        name = without_secrets(place) if is_remote(place) else os.path.abspath(place)
        about = (listed.num_images, listed.class_names, listed.left_out, listed.passed_over)
        return Images(name, None, _digest(listed.fingerprint, listed.class_names), *about, listed)
    store = ImageStore(place)
    labels = store.manifest.labels
    digest = _digest(store_digest(store), store.class_names, labels and labels.model_dump())
    name = store.name if is_remote(place) else store.location
    return Images(name, store.location, digest, len(store), store.class_names)


def _is_store(place: str) -> bool:
    if not is_remote(place):
        return os.path.isfile(os.path.join(place, MANIFEST))
    is_pattern = any(sign in place.partition("?")[0] for sign in "*[{")
    return not is_pattern and Bucket(place).holds_store()


def _digest(*parts: object) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(parts).encode())


def decoded(
    members: Sequence[Member], size_px: int, threads: ThreadPoolExecutor
) -> tuple[np.ndarray, dict[int, LeftOut]]:
    """Decode images as the building of a store does.

    Returns:
        (pixels uint8 ``[n, size_px, size_px, 3]``, black where an image cannot be read; those images by their number).

    Raises:
        SourceError: a file cannot be read now, but perhaps later.
    """
    pixels = np.zeros((len(members), size_px, size_px, 3), dtype=np.uint8)
    left_out = dict[int, LeftOut]()

    def decode_into(number: int) -> None:
        try:
            pixels[number] = decode_member(members[number], size_px)
        except Unreadable as error:
            left_out[number] = LeftOut(to_unicode(members[number].key), str(error))

    for _ in threads.map(decode_into, range(len(members))):
        pass
    return pixels, dict(sorted(left_out.items()))


def decoding_threads() -> ThreadPoolExecutor:
    """Return threads to decode with, as many as the encoder computes with."""
    return ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="decoding")


def pictures_of(where: str, rows: Sequence[int], keys: Sequence[str], size_px: int) -> list[np.ndarray | None]:
    """Return images by their row numbers, which count in stores, and keys: uint8 ``[H, W, 3]``; None: it is not there.

    Args:
        size_px: side of images that are decoded; those of a store are as the store has them.

    Raises:
        StoreError, SourceError: there are no images, or they cannot be read.
    """
    if _is_store(where):
        store = ImageStore(where)
        there = [row for row in dict.fromkeys(rows) if row < len(store)]
        ids = np.array(there, dtype=np.int64)
        known = dict(zip(there, zip(store.keys_at(ids), store.gather(ids), strict=True), strict=True))
        return [
            known[row][1] if row in known and known[row][0] == key else None
            for row, key in zip(rows, keys, strict=True)
        ]
    wanted, found = set(keys), dict[str, Member]()
    for member in list_source(where).members():
        if (key := to_unicode(member.key)) in wanted and key not in found:
            found[key] = member
            if len(found) == len(wanted):
                break
    return [decode_member(found[key], size_px) if key in found else None for key in keys]
