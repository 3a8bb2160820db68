"""Tests of the data path's benchmarks: each loader reads the images it was given, each figure is what it says."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import checks, data, data_report, large_store, mosaics, transforms
from benchmarks.contestant import CONTESTANTS, OURS, batches
from benchmarks.loaders import BATCH, Loader
from benchmarks.processes import in_fresh_process
from ssl_dist.store import ImageStore, build
from tests.conftest import write_images

IMAGES, SIZE_PX = BATCH + 20, 16
ENTERED = [(name, encoding) for name, kind in CONTESTANTS.items() for encoding in kind.encodings]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare the images that contestants start from, and our store, which ``Table.take`` reads too."""
    made = tmp_path_factory.mktemp("contest")
    write_images(made / "source", num_classes=2, per_class=IMAGES // 2, size_px=SIZE_PX)
    data._prepare(made / "source", made, IMAGES, SIZE_PX)
    CONTESTANTS[OURS](made, "raw").write()
    return made


def _installed(name: str, encoding: str, folder: Path) -> Loader:
    kind = CONTESTANTS[name]
    if importlib.util.find_spec(kind.module) is None:
        pytest.skip(f"{kind.module} is not installed")
    loader = kind(folder, encoding)
    if not loader.place.exists():
        loader.write()
    return loader


@pytest.mark.parametrize(("name", "encoding"), [pair for pair in ENTERED if "rows" in CONTESTANTS[pair[0]].measures])
def test_random_rows_are_the_images_asked_for(folder: Path, name: str, encoding: str) -> None:
    loader = _installed(name, encoding, folder)
    if encoding == "jpeg" and name != OURS:
        pytest.skip("pixels alone have random rows")
    ids = np.array([7, 3, IMAGES - 1, 3])
    rows, expected = loader.rows()(ids), loader.pixels[ids]
    if "shuffled" in name:  # it reads in its own order, so any image of the set will do
        assert all((row == loader.pixels).all((1, 2, 3)).any() for row in rows)
    elif name in (OURS, "Table.take"):  # the store is in the order of the files' names
        assert np.array_equal(rows, loader.pixels[_by_name(ids)])
    else:
        assert np.array_equal(rows, expected)


def _by_name(ids: np.ndarray) -> np.ndarray:
    names = sorted(range(IMAGES), key=lambda number: (number % 10, number))
    return np.array(names)[ids]


@pytest.mark.parametrize(("name", "encoding"), [pair for pair in ENTERED if "batches" in CONTESTANTS[pair[0]].measures])
def test_a_batch_has_the_images_in_another_order(folder: Path, name: str, encoding: str) -> None:
    loader = _installed(name, encoding, folder)
    made = next(batches(loader, "none"))
    assert made.dtype == torch.uint8
    images = (made if made.shape[-1] == 3 else made.permute(0, 2, 3, 1)).numpy().astype(int)
    assert images.shape == (BATCH, SIZE_PX, SIZE_PX, 3)
    # JPEG decoders differ in rounding by a unit or two; other images are tens of units away
    distance = np.abs(images[:, None] - loader.pixels[None]).mean((2, 3, 4))  # [BATCH, IMAGES]
    nearest = distance.argmin(1)
    assert distance.min(1).max() < 2
    assert len(set(nearest)) == BATCH
    assert list(nearest) != sorted(nearest)


@pytest.mark.parametrize("views", ["torchvision", "kornia", "lightly"])
@pytest.mark.parametrize("size_px", [16, 48])
def test_peers_make_two_different_views_in_range(views: str, size_px: int) -> None:
    pytest.importorskip(views)
    pixels = np.random.default_rng(0).integers(0, 256, (4, size_px, size_px, 3), dtype=np.uint8)
    if views == "kornia":
        pairs = transforms.kornia(size_px)(torch.from_numpy(pixels))
    else:
        made = [transforms.PER_IMAGE[views](size_px)(Image.fromarray(one)) for one in pixels]
        pairs = tuple(torch.stack(view) for view in zip(*made, strict=True))
    for view in pairs:
        assert view.dtype == torch.float32
        assert view.shape == (4, 3, size_px, size_px)
        assert -1e-5 <= view.min() <= view.max() <= 1 + 1e-5  # kornia resamples in float32
    assert not torch.equal(*pairs)


@pytest.mark.slow
def test_a_contestant_is_measured_in_a_process_of_its_own(folder: Path) -> None:
    one = data._Contestant(OURS, "raw", folder, sys.executable)
    with one:
        one.load()
        assert one.views == ("none", OURS)
        found: list[dict[str, Any]] = [
            *data._turns("rows", [(one, {"batch": 100, "seconds": 0.01})], 1),
            *data._turns("first", [(one, {})], 1),
            *data._batches([one], (OURS, "kornia"), 1, 0.01),
            one.extra_memory(),
        ]
    rows, first, made, memory = found
    assert (rows["contestant"], rows["batch"]) == (OURS, 100)
    assert rows["rows_per_s"] > 0
    assert first["first_batch_s"] > 0
    assert made["views"] == OURS
    assert made["images_per_cpu_s"] > 0
    assert memory["extra_rss_bytes"] > 0


def test_the_report_names_the_best_other_loader_and_what_was_missing(tmp_path: Path) -> None:
    rates = {(OURS, "raw", OURS): 800.0, ("Lance", "jpeg", "kornia"): 200.0, ("Lance", "jpeg", "torchvision"): 100.0}
    records: list[dict[str, Any]] = [{"px": 96, "contestant": "HF datasets", "encoding": "raw", "missing": "datasets"}]
    for name, encoding in ((OURS, "raw"), ("Lance", "jpeg")):
        about = {"px": 96, "contestant": name, "encoding": encoding}
        records += [
            {**about, "measure": "first", "first_batch_s": 0.1},
            {**about, "measure": "memory", "extra_rss_bytes": 2e6, "extra_anon_bytes": 1e6},
            {**about, "measure": "batches", "views": "none", "images_per_cpu_s": 1000.0},
        ]
        records += [
            {**about, "measure": "batches", "views": views, "images_per_cpu_s": rate}
            for (who, _, views), rate in rates.items()
            if who == name
        ]
    for name, rate in ((OURS, 5.0), ("Lance", 2.0)):
        about = {"px": 96, "contestant": name, "encoding": "raw", "measure": "rows"}
        records += [{**about, "batch": batch, "rows_per_s": rate * batch} for batch in (256, 1024)]
    text = data_report.text(records, 1000, 3)
    assert "| Lance | 512 | 2.50 | 2,048 | 2.50 |" in text
    assert "best other loader is Lance (jpeg) with kornia: 4.0 times slower" in text
    assert "HF datasets (no module datasets)" in text
    data_report.draw(records, tmp_path / "data.png")
    assert (tmp_path / "data.png").stat().st_size > 0


def test_the_peak_of_a_fresh_process_is_seen() -> None:
    call = in_fresh_process(len, b"x" * (200 << 20))
    assert call.result == 200 << 20
    assert 200 << 20 < call.peak.anon <= call.peak.rss
    with pytest.raises(RuntimeError, match="ended with code 3"):
        in_fresh_process(sys.exit, 3)


def test_mosaics_are_of_the_sources_tiles_and_the_same_each_time(image_folder: Path, tmp_path: Path) -> None:
    build(image_folder, tmp_path / "tiles", size_px=mosaics.TILE_PX, workers=1)
    pool = ImageStore(tmp_path / "tiles")
    first, again = (mosaics._mosaics(pool, range(5, 9)) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, mosaics._mosaics(pool, range(9, 13)))
    side = mosaics.TILE_PX
    assert first.shape == (4, 3 * side, 3 * side, 3)
    tile = first[2, side : 2 * side, 2 * side :]
    known = pool.gather(np.arange(len(pool)))
    assert any(np.array_equal(tile, one) or np.array_equal(tile[:, ::-1], one) for one in known)


def test_a_store_is_trained_on_and_opened_at_any_step(folder: Path) -> None:
    store = folder / "ssl_dist.data.batches-raw"
    assert large_store._open_at(store, 10**6, "off") > 0
    assert large_store._train_on(store, 2) > 0
    orders = list(large_store._order({"small": 100, "10^9": 10**9}))
    assert [one["ids"] for one in orders] == [100] * 3 + [10**9] * 3
    assert max(one["peak_bytes"] for one in orders) < 1 << 20  # no array of 10^9 items is made


def test_checks_are_measured_as_a_share_of_the_same_epoch(folder: Path, tmp_path: Path) -> None:
    checks.main(folder / "jpeg", sizes=[16], repeats=1, folder=tmp_path, docs=tmp_path)
    assert "| 16 px, " in (tmp_path / "performance.md").read_text()
    seconds = {"disk_first_off_s": 4.0, "disk_first_lazy_s": 5.0, "cache_first_off_s": 1.0, "cache_first_lazy_s": 1.2}
    later = {"cache_later_off_s": 1.0, "cache_later_lazy_s": 0.5, "numpy_s": 0.4}
    line = checks._text([{"px": 32, "images": 100, "bytes": 2e9, **seconds, **later}], 1).splitlines()[-1]
    assert line == "| 32 px, 2,000 MB, read | 25 | 20 | 100 | 83 | 100 | 200 | 250 | +25% | +20% | +2.0% |"


@pytest.mark.slow
def test_the_benchmarks_run_through(tmp_path: Path) -> None:
    write_images(tmp_path / "source", num_classes=2, per_class=200, size_px=32)
    data.main(tmp_path / "source", images=300, sizes=[32], repeats=1, seconds=0.01, python=[], docs=tmp_path)
    large_store.main(tmp_path / "source", images=512, steps=2, repeats=1, folder=tmp_path / "stores", docs=tmp_path)
    page = (tmp_path / "performance.md").read_text()
    assert "## The data path" in page
    assert "## A large store" in page
    assert json.loads((tmp_path / "stores" / "build.json").read_text())[1]["images"] == 512
