"""A source of few images is built in pieces too: all writers have work, a bar moves, and a killed build goes on."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ssl_dist import store
from ssl_dist.errors import StoreError
from ssl_dist.store import ImageStore, Manifest
from ssl_dist.store.building import builder, writer_pool
from tests.conftest import write_images
from tests.store.test_growing import Stop, files_of, stop_after

_IMAGES = 300


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_images(folder, num_classes=2, per_class=_IMAGES // 2, size_px=8)
    return folder


@pytest.fixture(scope="module")
def built(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built") / "s"
    store.build(pictures, path, workers=1)
    return path


def test_writers_share_the_pictures_and_the_store_is_the_same(pictures: Path, built: Path, tmp_path: Path) -> None:
    assert [shard.rows for shard in Manifest.read(built).shards] == [64, 64, 64, 64, 44]
    store.build(pictures, tmp_path / "s", workers=2)
    assert files_of(tmp_path / "s") == files_of(built)


@pytest.mark.parametrize(
    ("images", "shard"),
    [(64, 8192), (65, 64), (2000, 64), (5000, 256), (8192, 256), (50_000, 2048), (131_072, 4096), (131_073, 8192)],
)
def test_shards_are_smaller_where_images_are_few(images: int, shard: int) -> None:
    listed = SimpleNamespace(num_images=images, fingerprint="", class_names=())
    shard_format = SimpleNamespace(model_dump=dict)
    sizes = list(builder._jobs(listed, shard_format, 0).values())  # type: ignore[arg-type]
    assert (sizes[0], sizes[-1]) == (shard, 8192), "the last is the job of earlier versions"


@pytest.mark.parametrize("way", ["build", "append", "merge"])
def test_each_way_to_write_reports_its_pieces_and_goes_on_after_them(
    way: str, pictures: Path, built: Path, small_store: Path, tmp_path: Path
) -> None:
    path, shards = tmp_path / "s", 5
    if way == "append":
        store.build(pictures, path, workers=1)
        shards = 10

    def write(progress: Callable[[int, int], None]) -> None:
        if way == "build":
            store.build(pictures, path, workers=1, progress=progress)
        elif way == "append":
            store.append(pictures, path, workers=1, allow_duplicates=True, progress=progress)
        else:
            store.merge([built], path, workers=1, progress=progress)

    with pytest.raises(Stop):
        write(stop_after(3))
    kept = {shard.name: shard.stat().st_ino for shard in path.glob("shard-*.arrow")}
    seen: list[int] = []
    write(lambda done, total: seen.append(done))
    assert [done for done in seen if done < _IMAGES] == [64, 128, 192, 256]
    assert len(kept) == shards - 2, "three of its five shards"
    assert {name: (path / name).stat().st_ino for name in kept} == kept
    assert len(ImageStore(path, verify="full")) == _IMAGES * (shards // 5)


@pytest.mark.parametrize("state", ["unfinished", "finished"])
def test_a_build_of_an_earlier_version_keeps_its_larger_shards(
    state: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "SHARD_IMAGES", 100)
    with monkeypatch.context() as earlier:
        earlier.setattr(builder, "SMALLEST_SHARD", 100)  # one size for all
        if state == "finished":
            store.build(pictures, tmp_path / "s", workers=1)
        else:
            with pytest.raises(Stop):
                store.build(pictures, tmp_path / "s", workers=1, progress=stop_after(1))
    first = (tmp_path / "s" / "shard-00000.arrow").stat().st_ino
    assert [shard.rows for shard in store.build(pictures, tmp_path / "s", workers=1, keep=True).shards] == [100] * 3
    assert (tmp_path / "s" / "shard-00000.arrow").stat().st_ino == first


def test_images_are_counted_while_the_next_shard_is_not_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_pool, "_REPORT_S", 0.01)
    shard, done = Future[Any](), multiprocessing.Value("q", 5)
    results = writer_pool._first_result(deque([shard]), done)
    assert next(results) == 5
    done.value = 60  # type: ignore[attr-defined]
    assert next(results) == 60
    shard.set_result("the shard")
    assert list(results) == ["the shard"]


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        ((-15, -11, -15), "crashed (signal 11, Segmentation fault)"),
        ((-6, -15), "crashed (signal 6, Aborted)"),
        ((-7,), "crashed (signal 7, Bus error)"),
        ((None, -9), "killed (signal 9), perhaps because memory ran out: give fewer --workers"),
        ((1, -15), "a writer process ended"),
    ],
)
def test_what_ended_a_writer_is_said(codes: tuple[int | None, ...], said: str) -> None:
    assert said in writer_pool._how_it_ended([SimpleNamespace(exitcode=code) for code in codes])


def test_a_build_names_the_signal_that_ended_a_writer(pictures: Path, tmp_path: Path) -> None:
    strangers = multiprocessing.active_children()

    def crash(done: int, total: int) -> None:
        for writer in multiprocessing.active_children():
            if writer not in strangers and writer.pid:
                os.kill(writer.pid, signal.SIGSEGV)

    with pytest.raises(StoreError, match=r"a writer process crashed \(signal 11, .*\): call again to resume"):
        store.build(pictures, tmp_path / "s", workers=2, progress=crash)
