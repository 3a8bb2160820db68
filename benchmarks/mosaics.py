"""Generator of many 96 px images from few real ones of 32 px, written as tar shards of JPEG files, as for WebDataset.

An image is a 3 x 3 mosaic of images that are drawn at random and flipped left to right at random. The number of the
shard's first image seeds the draws.
"""

from __future__ import annotations

import io
import itertools
import multiprocessing
import tarfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from ssl_dist.store import ImageStore, build

TILE_PX, SIDE = 32, 3
SHARDS = 100
JPEG_QUALITY = 90


def write_shards(source: Path, folder: Path, images: int, workers: int) -> list[Path]:
    """Write ``images`` mosaics of the images of ``source`` as tars in ``folder``; return the tars' paths.

    There are SHARDS tars, or one an image if there are fewer images. A store must be able to be built from ``source``.
    """
    build(source, folder / "tiles", size_px=TILE_PX, keep=True, workers=workers)
    bounds = np.linspace(0, images, min(SHARDS, images) + 1).astype(int).tolist()
    ranges = [range(*pair) for pair in itertools.pairwise(bounds)]
    paths = [folder / f"{number:03d}.tar" for number in range(len(ranges))]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for _ in pool.map(_write_shard, itertools.repeat(folder / "tiles"), paths, ranges):
            pass
    return paths


def _write_shard(tiles: Path, path: Path, numbers: range) -> None:
    pool = ImageStore(tiles, verify="off")
    with tarfile.open(path, "w") as shard:
        for number, mosaic in zip(numbers, _mosaics(pool, numbers), strict=True):
            content = io.BytesIO()
            Image.fromarray(mosaic).save(content, format="JPEG", quality=JPEG_QUALITY)
            entry = tarfile.TarInfo(f"{number:09d}.jpg")
            entry.size = content.tell()
            content.seek(0)
            shard.addfile(entry, content)


def _mosaics(pool: ImageStore, numbers: range) -> np.ndarray:
    """Return the mosaics of these numbers, uint8 [n, 96, 96, 3]."""
    random = np.random.default_rng(numbers.start)
    drawn = random.integers(len(pool), size=len(numbers) * SIDE * SIDE)
    tiles = pool.gather(drawn)  # [n * 9, 32, 32, 3]
    turned = random.random(len(drawn)) < 0.5
    tiles[turned] = tiles[turned, :, ::-1]
    grid = tiles.reshape(len(numbers), SIDE, SIDE, TILE_PX, TILE_PX, 3).swapaxes(2, 3)
    return grid.reshape(len(numbers), SIDE * TILE_PX, SIDE * TILE_PX, 3)
