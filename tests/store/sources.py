"""Helpers for tests of sources: write images, tables and tars, build a store of them, and check what it holds."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from ssl_dist import store
from ssl_dist.store import ImageStore
from ssl_dist.store.building.sources import Source

Pixels = np.ndarray


def random_images(count: int, size: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def png(image: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def built(source: str | Path, path: Path, **options: Any) -> ImageStore:
    store.build(source, path, workers=1, **options)
    return ImageStore(path, verify="full")


def assert_holds(opened: ImageStore, images: Pixels, labels: Iterable[int]) -> None:
    assert opened.labels.tolist() == list(labels)
    assert np.array_equal(opened.gather(np.arange(len(opened))), images)


def left_out(listed: Source) -> tuple[str, ...]:
    return tuple(key for key, _ in listed.left_out)


def image_column(kind: str, images: Pixels) -> pa.Array:
    encoded: list[bytes | None] = [png(image) for image in images]
    if kind == "struct":
        struct_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        return pa.array([{"bytes": content, "path": None} for content in encoded], struct_type)
    return pa.array(encoded, pa.binary() if kind == "binary" else pa.large_binary())


def write_table(table: pa.Table, path: Path) -> Path:
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=3)
    else:
        new = pa.ipc.new_file if path.suffix == ".arrow" else pa.ipc.new_stream
        with path.open("wb") as file, new(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    return path


def shard_of(path: Path, samples: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in samples.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path
