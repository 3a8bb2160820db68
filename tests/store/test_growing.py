"""Builds and appends that are killed and resumed, stores that grow, merged stores, and stores of JPEG files."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from ssl_dist import store
from ssl_dist.errors import ConfigError, SourceError, StoreDamaged, StoreError
from ssl_dist.store import ImageStore
from ssl_dist.store.building import builder, lock, shard_writer, writer_pool
from ssl_dist.store.building.sources import File
from tests.store.held import wait_until, writers_of


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "SHARD_IMAGES", 10)
    monkeypatch.setattr(builder, "BATCH_ROWS", 4)


def files_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def everything(path: Path) -> list[tuple[str, str, bytes]]:
    """Return key, class and pixels of every row, in order."""
    opened = ImageStore(path)
    images = opened.gather(np.arange(len(opened)))
    names = [*opened.class_names, "none"]
    keys = [key for key, _, _ in opened.rows()]
    labelled = zip(keys, opened.labels, images, strict=True)
    return [(key, names[label], image.tobytes()) for key, label, image in labelled]


class Stop(Exception):
    pass


def stop_after(shards: int) -> builder.ProgressCallback:
    """Return a progress callback that ends a build, as a kill would, when this many shards are written."""
    calls = iter(range(1, shards + 1))

    def progress(done: int, total: int) -> None:
        if next(calls) == shards:
            raise Stop

    return progress


def test_a_build_that_died_is_resumed_after_its_shards(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.build(image_folder, tmp_path / "whole", workers=1)
    with pytest.raises(Stop):
        store.build(image_folder, tmp_path / "s", workers=1, progress=stop_after(3))
    with pytest.raises(StoreError, match="is not a store"):
        ImageStore(tmp_path / "s")
    first = (tmp_path / "s" / "shard-00000.arrow").stat().st_ino
    written = []
    monkeypatch.setattr(
        writer_pool, "write_shard", lambda job, _: written.append(job.path.name) or shard_writer.write_shard(job)
    )
    store.build(image_folder, tmp_path / "s", workers=1)
    assert written == ["shard-00003.arrow", "shard-00004.arrow", "shard-00005.arrow"]
    assert (tmp_path / "s" / "shard-00000.arrow").stat().st_ino == first
    assert files_of(tmp_path / "s") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("change", ["a file", "the size", "the ground", "a shard", "a note"])
def test_shards_of_an_unfinished_build_are_checked_before_they_are_reused(
    change: str, image_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    shutil.copytree(image_folder, folder)
    with pytest.raises(Stop):
        store.build(folder, tmp_path / "s", workers=1, progress=stop_after(3))
    options: dict[str, Any] = {}
    if change == "a file":
        next(folder.rglob("*.png")).write_bytes(next(iter(sorted(folder.rglob("*.png"))[-1:])).read_bytes())
    elif change == "the size":
        options["size_px"] = 8
    elif change == "the ground":
        options["alpha"] = "black"
    elif change == "a shard":
        content = bytearray((tmp_path / "s" / "shard-00001.arrow").read_bytes())
        content[len(content) // 2] ^= 1
        (tmp_path / "s" / "shard-00001.arrow").write_bytes(content)
    else:
        (tmp_path / "s" / ".shard-00001.json").write_text("{}")
    store.build(folder, tmp_path / "s", workers=1, **options)
    store.build(folder, tmp_path / "whole", workers=1, **options)
    assert files_of(tmp_path / "s") == files_of(tmp_path / "whole")


def _append(source: Path, path: Path, at_call: int) -> None:
    """Die at a call that writes to the disk, counted from 0."""
    builder.SHARD_IMAGES, builder.BATCH_ROWS = 10, 4
    calls = itertools.count()

    def deadly(call: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **more: object) -> object:
            if next(calls) == at_call:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **more)

        return counted

    for name in ("open", "fsync", "replace", "unlink"):
        setattr(os, name, deadly(getattr(os, name)))
    store.append(source, path, workers=1, allow_duplicates=True)


def test_readers_see_the_old_store_or_the_new_one_wherever_an_append_is_killed(
    image_folder: Path, tmp_path: Path
) -> None:
    store.build(image_folder / "class0", tmp_path / "begun", workers=1)
    old = everything(tmp_path / "begun")
    shutil.copytree(tmp_path / "begun", tmp_path / "whole")
    store.append(image_folder, tmp_path / "whole", workers=1, allow_duplicates=True)
    new, context = everything(tmp_path / "whole"), multiprocessing.get_context("fork")
    seen = []
    for at_call in itertools.count():
        path = tmp_path / str(at_call)
        shutil.copytree(tmp_path / "begun", path)
        writer = context.Process(target=_append, args=(image_folder, path, at_call))
        writer.start()
        writer.join()
        now = everything(path)
        assert now in (old, new)
        assert ImageStore(path).verify() == []
        seen.append(now == new)
        if writer.exitcode == 0:
            break
        store.append(image_folder, path, workers=1, allow_duplicates=True)
        assert everything(path) == new
    assert seen == sorted(seen), "once the new one is there, it stays"
    assert len(seen) > 20
    assert seen[0] is False
    assert seen[-2] is True, "killed at its last call"


def test_append_keeps_ids_and_labels(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "zebra").symlink_to(image_folder / "class1")
    (tmp_path / "one" / "class2").symlink_to(image_folder / "class2")
    store.build(tmp_path / "one", tmp_path / "s", workers=1)
    before = everything(tmp_path / "s")
    manifest = store.append(image_folder, tmp_path / "s", workers=1, allow_duplicates=True)
    after = everything(tmp_path / "s")
    assert after[: len(before)] == before
    assert manifest.class_names == ("class2", "zebra", "class0", "class1")
    assert {name for _, name, _ in after[len(before) :]} == {"class0", "class1", "class2"}
    assert manifest.rows == len(before) + 51
    assert ImageStore(tmp_path / "s", verify="full").manifest == manifest
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == sorted(
        ["manifest.json", *(entry.file for entry in manifest.shards)]
    )


def test_append_resizes_to_the_size_of_the_store(image_folder: Path, tmp_path: Path) -> None:
    store.build(image_folder, tmp_path / "small", size_px=8, workers=1)
    store.append(image_folder, tmp_path / "small", workers=1, allow_duplicates=True)
    rows = everything(tmp_path / "small")
    assert [pixels for _, _, pixels in rows[:51]] == [pixels for _, _, pixels in rows[51:]]
    store.build(image_folder, tmp_path / "own", workers=1)
    Image.new("RGB", (9, 9)).save(tmp_path / "other.png")
    with pytest.raises(SourceError, match="is 9 x 9 px where the images before it are 16 x 16"):
        store.append(tmp_path / "other.png", tmp_path / "own", workers=1)
    assert len(ImageStore(tmp_path / "own", verify="full")) == 51
    with pytest.raises(StoreError, match="is not a store"):
        store.append(image_folder, tmp_path / "nothing", workers=1)


def test_a_merged_store_has_all_rows_and_each_class_name_once(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    for name in ("class2", "class0"):
        (tmp_path / "two" / name).symlink_to(image_folder / name)
    store.build(image_folder, tmp_path / "a", workers=1)
    store.build(tmp_path / "two", tmp_path / "b", workers=1)
    store.build(image_folder / "class1", tmp_path / "c", workers=1)
    merged = store.merge([tmp_path / "b", tmp_path / "a", tmp_path / "c"], tmp_path / "m", workers=2)
    assert everything(tmp_path / "m") == [row for name in "bac" for row in everything(tmp_path / name)]
    assert merged.class_names == ("class0", "class2", "class1")
    store.build(image_folder, tmp_path / "small", size_px=8, workers=1)
    with pytest.raises(StoreError, match=r"has image_shape \(16, 16, 3\) and .*small \(8, 8, 3\)"):
        store.merge([tmp_path / "a", tmp_path / "small"], tmp_path / "n")
    half = store.build(tmp_path / "a", tmp_path / "half", size_px=8, workers=1)
    assert half.image_shape == (8, 8, 3)


def test_shares_by_hash_make_up_the_whole_and_do_not_depend_on_other_images(image_folder: Path, tmp_path: Path) -> None:
    store.build(image_folder, tmp_path / "rest", share=(0.3, 1), workers=1)
    store.build(image_folder, tmp_path / "held", share=(0, 0.3), workers=1)
    rest, held = everything(tmp_path / "rest"), everything(tmp_path / "held")
    store.build(image_folder, tmp_path / "all", workers=1)
    assert sorted(rest + held) == sorted(everything(tmp_path / "all"))
    assert 5 <= len(held) <= 25
    (tmp_path / "more").mkdir()
    for name in ("class0", "class1", "class2"):
        shutil.copytree(image_folder / name, tmp_path / "more" / name)
    for file in sorted((tmp_path / "more").rglob("*.png"))[::7]:
        file.rename(file.with_name(f"new-{file.name}"))
    store.build(tmp_path / "more", tmp_path / "again", share=(0, 0.3), workers=1)
    kept = {row for row in everything(tmp_path / "again") if "new-" not in row[0]}
    assert kept <= set(held)
    for share in ((0.5, 0.5), (-0.1, 1), (0, 1.5)):
        with pytest.raises(ConfigError, match="0 <= low < high <= 1"):
            store.build(image_folder, tmp_path / "x", share=share, workers=1)


def smooth(size: int, seed: int) -> np.ndarray:
    """Return a smooth image, which JPEG changes little."""
    grid = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC))


def test_a_jpeg_store_keeps_jpegs_and_encodes_the_rest(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    images = [smooth(32, seed) for seed in range(9)]
    for number, image in enumerate(images[:6]):
        Image.fromarray(image).save(folder / f"{number}.jpg", quality=50)
    Image.fromarray(images[6]).save(folder / "6.png")
    Image.fromarray(images[7]).convert("L").save(folder / "7.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    Image.fromarray(images[8]).save(folder / "8.jpg", exif=exif)
    store.build(folder, tmp_path / "jpeg", encoding="jpeg", workers=1)
    store.build(folder, tmp_path / "raw", workers=1)
    jpeg, raw = ImageStore(tmp_path / "jpeg", verify="full"), ImageStore(tmp_path / "raw")
    contents = [content for _, _, content in jpeg.rows()]
    for number in range(6):
        assert contents[number] == (folder / f"{number}.jpg").read_bytes()
    ids = np.array([8, 0, 3, 3, 7, 6, 1])
    ours, theirs = (opened.gather(ids).astype(int) for opened in (jpeg, raw))
    exact = np.isin(ids, range(6))
    assert np.array_equal(ours[exact], theirs[exact])  # the same decoder's work, libjpeg-turbo's
    assert np.abs(ours[~exact] - theirs[~exact]).mean() < 4  # of 255: quality 90
    assert jpeg.image_shape == raw.image_shape == (32, 32, 3)
    merged = store.merge([tmp_path / "jpeg", tmp_path / "jpeg"], tmp_path / "twice", workers=1)
    assert [content for _, _, content in ImageStore(tmp_path / "twice").rows()] == contents * 2
    assert merged.encoding == "jpeg"


def test_damage_in_a_jpeg_store_is_found_before_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for seed in range(4):
        Image.fromarray(smooth(32, seed)).save(tmp_path / "images" / f"{seed}.jpg")
    store.build(tmp_path / "images", tmp_path / "s", encoding="jpeg", workers=1)
    path = tmp_path / "s" / "shard-00000.arrow"
    content = bytearray(path.read_bytes())
    content[content.index(b"\xff\xd8") + 200] ^= 4
    path.write_bytes(content)
    with pytest.raises(StoreDamaged, match="differs from its checksum"):
        ImageStore(tmp_path / "s").gather(np.arange(4))
    with pytest.raises(ConfigError, match="encoding 'png': it is one of raw, jpeg"):
        store.build(tmp_path / "images", tmp_path / "t", encoding="png", workers=1)


def test_images_in_memory_are_written_like_files(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(smooth(96, 0)).save(buffer, format="PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    store.build(tmp_path / "a.png", tmp_path / "s", size_px=32, workers=1)
    (tmp_path / "train_X.bin").write_bytes(smooth(96, 0).transpose(2, 1, 0).tobytes())
    store.build(tmp_path / "train_X.bin", tmp_path / "t", size_px=32, workers=1)
    assert everything(tmp_path / "s")[0][2] == everything(tmp_path / "t")[0][2]


def test_two_appends_at_once_lose_nothing(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An append reads the store's manifest again once it holds the lock."""
    store.build(image_folder / "class0", tmp_path / "s", workers=1)
    lock_store = builder.lock_store

    @contextlib.contextmanager
    def late(path: Path) -> Iterator[lock.BuildLock]:
        monkeypatch.setattr(builder, "lock_store", lock_store)
        store.append(image_folder / "class1", path, workers=1)
        with lock_store(path) as held:
            yield held

    monkeypatch.setattr(builder, "lock_store", late)
    store.append(image_folder / "class2", tmp_path / "s", workers=1)
    keys = [key for key, _, _ in everything(tmp_path / "s")]
    assert len(keys) == 51
    assert ImageStore(tmp_path / "s").verify() == []
    assert len({row[2] for row in everything(tmp_path / "s")}) == 51


def test_an_append_that_died_after_its_manifest_was_written_adds_nothing_when_repeated(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.build(image_folder / "class0", tmp_path / "s", workers=1)

    def die(path: Path, *_: str) -> None:
        if len(ImageStore(path)) == 17 + 51:
            raise Stop

    with monkeypatch.context() as patched:
        patched.setattr(lock, "_remove", die)
        with pytest.raises(Stop):
            store.append(image_folder, tmp_path / "s", workers=1)
    done = everything(tmp_path / "s")
    assert store.append(image_folder, tmp_path / "s", workers=1).rows == len(done) == 17 + 51
    assert everything(tmp_path / "s") == done
    assert not list((tmp_path / "s").glob(".*"))
    again = store.append(image_folder, tmp_path / "s", workers=1, allow_duplicates=True)
    assert again.rows == 17 + 51 + 51, "a new call appends once more"


HELD_BUILD = """
import os, sys
from ssl_dist import store
from ssl_dist.store.building import builder
from tests.store import held

os.fsync = held.fsync  # in the writers, which import this, too
if __name__ == "__main__":
    builder.SHARD_IMAGES = 10
    store.build(sys.argv[1], sys.argv[2], size_px=1500, workers=2)
"""


def test_the_writers_of_a_killed_build_do_not_write_into_the_next(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "build.py").write_text(HELD_BUILD)
    root = str(Path(__file__).parents[2])
    first = subprocess.Popen(
        [sys.executable, tmp_path / "build.py", image_folder, tmp_path / "s"], env={**os.environ, "PYTHONPATH": root}
    )
    writers = wait_until(lambda: found if len(found := writers_of(tmp_path / "s")) == 2 else None)
    first.kill()
    first.wait()
    store.build(image_folder, tmp_path / "s", size_px=8, workers=1)
    wait_until(lambda: not any(map(_is_alive, writers)))  # though nobody lets them go
    store.build(image_folder, tmp_path / "whole", size_px=8, workers=1)
    assert files_of(tmp_path / "s").items() >= files_of(tmp_path / "whole").items()
    assert not list((tmp_path / "s").glob("shard-0000[6-9].arrow"))


def _is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_fault_in_reading_ends_a_build_which_can_be_resumed(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of the network skips no image, unlike a file that is missing or may not be read."""
    read, calls = File.read, iter(range(100))

    def faulty(file: File) -> bytes:
        if next(calls) == 25:
            raise OSError("network unreachable")
        return read(file)

    with monkeypatch.context() as patched:
        patched.setattr(File, "read", faulty)
        with pytest.raises(SourceError, match=r"cannot be read \(network unreachable\): call again to continue"):
            store.build(image_folder, tmp_path / "s", workers=1)
    assert store.build(image_folder, tmp_path / "s", workers=1).rows == 51


def test_a_record_batch_ends_at_a_number_of_bytes(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_writer, "BATCH_BYTES", 3 * 16 * 16 * 3)
    manifest = store.build(image_folder, tmp_path / "s", workers=1)
    assert max(batch.rows for entry in manifest.shards for batch in entry.batches) == 3
    assert manifest.rows == 51


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_shape": [8, 32, 3]}, "differs from its own checksum"),
        ({"rows": 1000}, "rows 1000: the shards have 51"),
        ({"shards": []}, "shards: "),
        ({"image_shape": [-1, 4, 3]}, r"image_shape \(-1, 4, 3\)"),
        ({"rows": 2**70}, "rows"),
        ({"skipped": 1}, "differs from its own checksum"),
    ],
)
def test_a_manifest_that_was_changed_is_refused(
    change: dict[str, Any], message: str, image_folder: Path, tmp_path: Path
) -> None:
    store.build(image_folder, tmp_path / "s", workers=1)
    path = tmp_path / "s" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(StoreError, match=message):
        ImageStore(tmp_path / "s")
    path.write_text("[" * 200_000)
    with pytest.raises(StoreError, match="cannot be read"):
        ImageStore(tmp_path / "s")


def test_an_older_manifest_without_a_checksum_is_read(image_folder: Path, tmp_path: Path) -> None:
    store.build(image_folder, tmp_path / "s", workers=1)
    path = tmp_path / "s" / "manifest.json"
    old = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in old.items() if key not in ("xxh3", "made_of")}))
    assert len(ImageStore(tmp_path / "s", verify="full")) == 51


def test_a_wrong_store_with_right_checksums_is_reported_as_damaged(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checksums show that bytes are as they were written, not that they were written well."""
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, format="JPEG")
    with monkeypatch.context() as patched:
        patched.setattr(shard_writer, "_to_jpeg", lambda *_: buffer.getvalue())
        store.build(image_folder, tmp_path / "small", encoding="jpeg", workers=1)
    with pytest.raises(StoreDamaged, match=r"is \(1, 1, 3\), not \(16, 16, 3\)"):
        ImageStore(tmp_path / "small", verify="full").gather(np.arange(3))
    to_record_batch = shard_writer._to_record_batch

    def hostile(rows: list[shard_writer._Row], schema: pa.Schema) -> pa.RecordBatch:
        images, labels, keys = to_record_batch(rows, schema).columns
        offsets = np.array([0, *[2_000_000_000] * (len(images) - 1), 5], dtype=np.int32)
        buffers = [None, pa.py_buffer(offsets), images.buffers()[2]]
        damaged = pa.Array.from_buffers(pa.binary(), len(images), buffers)
        return pa.RecordBatch.from_arrays([damaged, labels, keys], schema=schema)

    with monkeypatch.context() as patched:
        patched.setattr(shard_writer, "_to_record_batch", hostile)
        store.build(image_folder, tmp_path / "hostile", encoding="jpeg", workers=1)
    for opened in (ImageStore(tmp_path / "hostile", verify="full"), ImageStore(tmp_path / "hostile")):
        with pytest.raises(StoreDamaged, match="cannot be read"):
            opened.gather(np.arange(3))
