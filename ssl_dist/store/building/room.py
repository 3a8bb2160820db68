"""Room on the disk: refuse raw images that do not fit, and warn where JPEG files may not."""

from __future__ import annotations

import shutil
from pathlib import Path

from ssl_dist.errors import StoreError
from ssl_dist.store.building.shard_writer import ShardFormat
from ssl_dist.store.schema import Manifest

_ROW_BYTES = 64  # of a label and a key, about


def expect_room_for_raw(store: Path, num_images: int, shard_format: ShardFormat, old: Manifest | None) -> None:
    """Expect room for raw images in a store's folder, which may be missing; the size of JPEG files is not known before.

    Shards of an unfinished build count as room: they are used or deleted.

    Raises:
        StoreError: its disk has less.
    """
    if shard_format.encoding == "raw":
        height, width, channels = shard_format.image_shape
        num_bytes = num_images * (height * width * channels + _ROW_BYTES)
        if problem := lacks_room(store, num_bytes - unfinished_bytes(store, old), num_images):
            raise StoreError(problem)


def unfinished_bytes(store: Path, old: Manifest | None) -> int:
    """Return the size of the shards in a folder, complete or not, that its manifest does not name."""
    listed = {shard.file for shard in old.shards} if old else set()
    there = (*store.glob("shard-*.arrow"), *store.glob(".shard-*.tmp"))
    return sum(path.stat().st_size for path in there if path.name not in listed)


def lacks_room(store: Path, num_bytes: float, num_images: int) -> str | None:
    """Return what to say where a store's disk has no room for ``num_bytes``, of so many images; None: it has."""
    folder = next(path for path in (store, *store.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if num_bytes <= free:
        return None
    return (
        f"{store}: {num_images:,} images need {_amount(num_bytes)}, and the disk has {_amount(free)} left: make room"
        " and call again, or choose another disk, a smaller size or --encoding jpeg"
    )


def _amount(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"
