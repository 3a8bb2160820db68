"""Smooth random images, and a raw store of them that is written in seconds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate

from ssl_dist.store.building.shard_writer import ShardFormat, ShardJob, write_shard
from ssl_dist.store.building.sources import Member
from ssl_dist.store.decode import describe_resize
from ssl_dist.store.schema import BATCH_ROWS, NO_LABEL, Manifest, ShardEntry

_GRID_PX = 8  # random colours a side; between them an image is smooth
_AT_ONCE = 1024  # images that are made at once, and the images of a shard


def images(count: int, px: int) -> np.ndarray:
    """Return uint8 ``[count, px, px, 3]``."""
    generator = torch.Generator().manual_seed(0)
    made = np.empty((count, px, px, 3), dtype=np.uint8)
    for first in range(0, count, _AT_ONCE):
        part = made[first : first + _AT_ONCE]
        colours = torch.rand(len(part), 3, _GRID_PX, _GRID_PX, generator=generator) * 255
        part[:] = interpolate(colours, size=(px, px), mode="bilinear").permute(0, 2, 3, 1).to(torch.uint8).numpy()
    return made


def write_store(place: Path, pixels: np.ndarray) -> None:
    """Write a raw store of these images, without labels, as ``ssl-dist store build`` writes one of image files."""
    shape = (pixels.shape[1], pixels.shape[2], 3)
    form = ShardFormat(encoding="raw", image_shape=shape, size_px=None, batch_rows=BATCH_ROWS)
    place.mkdir(parents=True)
    numbers = [range(first, min(first + _AT_ONCE, len(pixels))) for first in range(0, len(pixels), _AT_ONCE)]
    jobs = [
        ShardJob(
            [Member(f"{row:09d}", NO_LABEL, pixels[row]) for row in rows], place / f"shard-{shard:05d}.arrow", form
        )
        for shard, rows in enumerate(numbers)
    ]
    with ThreadPoolExecutor(len(jobs)) as threads:
        shards = list(threads.map(_write_shard, jobs))
    Manifest(
        split="train",
        encoding="raw",
        image_shape=shape,
        resize=describe_resize(None),
        class_names=(),
        rows=len(pixels),
        skipped=0,
        bytes=sum(shard.bytes for shard in shards),
        made_of="synthetic images",
        shards=tuple(shards),
    ).with_checksum().write(place)


def _write_shard(job: ShardJob) -> ShardEntry:
    written = write_shard(job)
    assert written.temporary
    assert written.summary.entry
    written.temporary.replace(written.path)
    return written.summary.entry
