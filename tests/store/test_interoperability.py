"""Other Arrow readers (Polars, DuckDB, datasets) read the same pixels, labels and keys from a store as we do."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from ssl_dist import store
from ssl_dist.store import ImageStore
from ssl_dist.store.building import builder

ROWS, SHAPE = 40, (8, 10, 3)


class Theirs(NamedTuple):
    """The columns of a store as another reader returns them."""

    images: list[Any]  # flat pixels, or the bytes of a JPEG
    labels: list[int | None]
    keys: list[str]


@pytest.fixture(scope="module", params=["raw", "jpeg"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    """Build a store of three shards of up to two record batches, with some images without a label."""
    folder = tmp_path_factory.mktemp("interoperability")
    random = np.random.default_rng(0)
    for number in range(ROWS):
        path = folder / "images" / ("" if number % 4 == 0 else f"class{number % 4}") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, SHAPE, dtype=np.uint8)).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "BATCH_ROWS", 10)
        patch.setattr(builder, "SHARD_IMAGES", 16)
        store.build(folder / "images", folder / "store", encoding=request.param, workers=1)
    return ImageStore(folder / "store")


def shards(opened: ImageStore) -> list[str]:
    return [f"{opened.location}/{entry.file}" for entry in opened.manifest.shards]


def pixels(image: Any) -> np.ndarray:
    """Return uint8 [H, W, 3] for an image as a reader returns it."""
    if isinstance(image, bytes):
        return np.asarray(Image.open(io.BytesIO(image)))
    return np.asarray(image, dtype=np.uint8).reshape(SHAPE)


def assert_equal(theirs: Theirs, opened: ImageStore) -> None:
    rows = list(opened.rows())
    assert theirs.keys == [key for key, _, _ in rows]
    assert [-1 if label is None else label for label in theirs.labels] == opened.labels.tolist()
    assert {-1, 0, 1, 2} == set(opened.labels.tolist())
    assert np.array_equal(np.stack([pixels(image) for image in theirs.images]), opened.gather(np.arange(ROWS)))


@pytest.mark.parametrize("lazily", [False, True])
def test_polars_reads_what_we_read(opened: ImageStore, lazily: bool) -> None:
    import polars

    files = shards(opened)
    table = polars.scan_ipc(files).collect() if lazily else polars.concat([polars.read_ipc(file) for file in files])
    images = table["image"].ext.storage() if opened.manifest.encoding == "raw" else table["image"]
    assert_equal(Theirs(images.to_list(), table["label"].to_list(), table["key"].to_list()), opened)


def test_duckdb_reads_what_we_read(opened: ImageStore) -> None:
    import duckdb
    from pyarrow import dataset

    files = dataset.dataset(shards(opened), format="ipc")
    with duckdb.connect() as database:
        database.register("files", files)
        columns = list(zip(*database.sql("select image, label, key from files").fetchall(), strict=True))
        counts = database.sql("select label, count(*) from files group by label order by label nulls first").fetchall()
    assert_equal(Theirs(*map(list, columns)), opened)
    assert counts == [(None, 10), (0, 10), (1, 10), (2, 10)]


def test_hugging_faces_datasets_reads_what_we_read(
    opened: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library knows no Arrow extension types, so it is told that pixels are a list; it decodes JPEGs itself."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # it would contact its hub
    import datasets

    raw = opened.manifest.encoding == "raw"
    image = datasets.List(datasets.Value("uint8"), length=math.prod(SHAPE)) if raw else datasets.Image()
    features = datasets.Features({"image": image, "label": datasets.ClassLabel(names=list(opened.class_names))})
    features["key"] = datasets.Value("string")
    table = datasets.load_dataset(
        "arrow", data_files=shards(opened), features=features, split="train", cache_dir=str(tmp_path)
    )
    assert_equal(Theirs(list(table["image"]), list(table["label"]), list(table["key"])), opened)
    assert table.features["label"].int2str(2) == "class3"
