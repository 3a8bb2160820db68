"""Appending what is there already is refused unless it is asked for; a store that does not fit the disk is refused."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
from PIL import Image

from ssl_dist import store
from ssl_dist.errors import SourceError, StoreError
from ssl_dist.store import ImageStore
from ssl_dist.store.building import builder, duplicates, writing
from tests.command import Command


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "SHARD_IMAGES", 10)
    monkeypatch.setattr(builder, "BATCH_ROWS", 4)
    monkeypatch.setattr(duplicates, "_PAIRS", 3)


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
@pytest.mark.parametrize("size_px", [None, 8])
def test_a_source_that_is_there_already_is_refused(
    encoding: str, size_px: int | None, image_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    store.build(image_folder, path, encoding=encoding, size_px=size_px, workers=1)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(SourceError, match=r"has class0/000.png, .* and 7 more already, .*--allow-duplicates"):
        store.append(image_folder, path, workers=1)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert store.append(image_folder, path, workers=1, allow_duplicates=True).rows == 102
    with pytest.raises(SourceError, match="already"):
        store.append(image_folder, path, workers=1)


@pytest.mark.parametrize("through", ["a tar", "another store", "a pattern", "a merged store"])
def test_it_does_not_matter_how_the_same_images_come_back(through: str, image_folder: Path, tmp_path: Path) -> None:
    path, source = tmp_path / "s", str(tmp_path / "t")
    store.build(image_folder, path, workers=1)
    if through == "a tar":
        source = shutil.make_archive(source, "tar", image_folder)
    elif through == "a pattern":
        source = f"{image_folder}/**/*.png"
    else:
        store.build(image_folder, source, workers=1)
    if through == "a merged store":
        store.merge([path, path], tmp_path / "m", workers=1)
        path = tmp_path / "m"
    with pytest.raises(SourceError, match="already, with the same pixels"):
        store.append(source, path, workers=1)


def test_one_old_image_among_new_ones_is_named(image_folder: Path, tmp_path: Path) -> None:
    store.build(image_folder, tmp_path / "s", workers=1)
    more = tmp_path / "more"
    shutil.copytree(image_folder, more)
    for file in more.rglob("*.png"):
        if file.parent.name != "class2" or file.name != "016.png":
            Image.new("RGB", (16, 16), (1, 2, 3)).save(file)
    with pytest.raises(SourceError, match=r"has class2/016.png already"):
        store.append(more, tmp_path / "s", workers=1)
    (more / "class2" / "016.png").unlink()
    assert store.append(more, tmp_path / "s", workers=1).rows == 51 + 50, "other pixels under the same keys"


def test_other_keys_are_compared_without_reading_an_image(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.build(image_folder / "class0", tmp_path / "s", workers=1)

    def refuse(*_: object) -> None:
        raise AssertionError("an image was read")

    monkeypatch.setattr(ImageStore, "gather", refuse)
    assert store.append(image_folder, tmp_path / "s", workers=1).rows == 17 + 51


def test_the_command_asks_for_the_option(command: Command, image_folder: Path, tmp_path: Path) -> None:
    store.build(image_folder, tmp_path / "s", workers=1)
    refused = command("store", "append", image_folder, tmp_path / "s", "--workers", 1)
    assert (refused.code, "--allow-duplicates" in refused.err) == (2, True)
    assert command("store", "append", image_folder, tmp_path / "s", "--workers", 1, "--allow-duplicates").code == 0


def free_bytes(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """Let the disk have so many free bytes at each question, and the last number from then on."""
    left, usage = list(numbers), shutil.disk_usage(".")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=left.pop(0) if len(left) > 1 else left[0]))


@pytest.mark.parametrize("growing", [False, True])
def test_a_raw_store_that_does_not_fit_is_refused_before_it_is_written(
    growing: bool, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, needed = tmp_path / "deep" / "s", 51 * 16 * 16 * 3
    if growing:
        store.build(image_folder / "class0", path, workers=1)
    before = sorted(tmp_path.rglob("*"))
    free_bytes(monkeypatch, needed)
    with pytest.raises(StoreError, match=r"s: 51 images need 0\.0 MB, and the disk has 0\.0 MB left: make room"):
        store.append(image_folder, path, workers=1) if growing else store.build(image_folder, path, workers=1)
    assert sorted(tmp_path.rglob("*")) == before
    free_bytes(monkeypatch, 2 * needed)
    rows = store.append(image_folder, path, workers=1) if growing else store.build(image_folder, path, workers=1)
    assert rows.rows == 51 + 17 * growing


def test_a_disk_that_others_fill_meanwhile_ends_the_build_with_what_to_do(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(writing, "publish_shard", refuse)
        with pytest.raises(StoreError, match=r"No space left on device \(make room, and the same command continues\)"):
            store.build(image_folder, tmp_path / "s", workers=1)
    assert store.build(image_folder, tmp_path / "s", workers=1).rows == 51


def test_a_build_stops_as_soon_as_it_shows_that_the_disk_is_too_small_and_goes_on_with_room(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_bytes(monkeypatch, 1 << 30, 1 << 30, 100)
    with pytest.raises(StoreError, match=r"s: 31 images need 0\.0 MB, and the disk has 0\.0 MB left"):
        store.build(image_folder, tmp_path / "s", workers=1)
    shards = sorted((tmp_path / "s").glob("shard-*.arrow"))
    assert len(shards) == 2
    free_bytes(monkeypatch, 51 * 16 * 16 * 3)
    with_shards_counted = store.build(image_folder, tmp_path / "s", workers=1)
    assert with_shards_counted.rows == 51


def test_jpeg_files_that_may_not_fit_are_only_warned_of_once(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first shards may hold the largest files."""
    free_bytes(monkeypatch, 100)
    assert store.build(image_folder, tmp_path / "s", encoding="jpeg", workers=1).rows == 51
    said = [record.getMessage() for record in caplog.records if "By the size of" in record.getMessage()]
    assert len(said) == 1
    assert "41 images need 0.0 MB, and the disk has 0.0 MB left" in said[0]
