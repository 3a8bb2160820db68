"""Building and opening stores: every source gives the same rows, skipped files are named, damage is found."""

from __future__ import annotations

import io
import logging
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from ssl_dist import store
from ssl_dist.errors import ConfigError, SourceError, StoreDamaged, StoreError
from ssl_dist.store import ImageStore
from ssl_dist.store.building import builder, lock, writing
from ssl_dist.store.decode import decode


def tar_of(folder: Path, target: Path, mode: str = "w", inside: str = "") -> Path:
    with tarfile.open(target, mode) as archive:
        archive.add(folder, arcname=inside or folder.name)
    return target


def pixels_by_key(path: Path) -> dict[str, tuple[bytes, int]]:
    opened = ImageStore(path)
    keys = [key for shard in opened.manifest.shards for key in pa.ipc.open_file(path / shard.file).read_all()["key"]]
    images = opened.gather(np.arange(len(opened)))
    pairs = zip(keys, images, opened.labels, strict=True)
    return {Path(str(key)).name + str(label): (image.tobytes(), int(label)) for key, image, label in pairs}


def test_a_tree_and_its_tars_give_the_same_rows(image_folder: Path, tmp_path: Path) -> None:
    plain = tar_of(image_folder, tmp_path / "a.tar", inside="train")
    packed = tar_of(image_folder, tmp_path / "a.tgz", "w:gz", inside="deep/er")
    stores = []
    for number, source in enumerate((image_folder, plain, packed)):
        manifest = store.build(source, tmp_path / f"s{number}", workers=1)
        assert (manifest.rows, manifest.skipped, manifest.image_shape) == (51, 0, (16, 16, 3))
        assert manifest.class_names == ("class0", "class1", "class2")
        stores.append(pixels_by_key(tmp_path / f"s{number}"))
    assert stores[0] == stores[1] == stores[2]
    one = np.asarray(Image.open(image_folder / "class1" / "003.png").convert("RGB"))
    assert stores[0]["003.png1"] == (one.tobytes(), 1)


def test_a_flat_folder_and_its_tar_have_no_labels(image_folder: Path, tmp_path: Path) -> None:
    flat = image_folder / "class0"
    for number, source in enumerate((flat, tar_of(flat, tmp_path / "flat.tar"))):
        manifest = store.build(source, tmp_path / f"s{number}", workers=1)
        assert (manifest.rows, manifest.class_names) == (17, ())
        assert ImageStore(tmp_path / f"s{number}").labels.tolist() == [-1] * 17


def test_the_number_of_writers_does_not_change_a_byte(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "SHARD_IMAGES", 10)
    for workers in (1, 3):
        store.build(image_folder, tmp_path / str(workers), workers=workers)
    files = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert files == ["manifest.json", *(f"shard-{n:05d}.arrow" for n in range(6))]
    for name in files:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


def test_gather_takes_any_order_with_repeats_across_batches(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "SHARD_IMAGES", 20)
    monkeypatch.setattr(builder, "BATCH_ROWS", 7)
    # one process, because the patched batch size is in this process only
    store.build(image_folder, tmp_path / "s", workers=1)
    opened = ImageStore(tmp_path / "s")
    assert [len(shard.batches) for shard in opened.manifest.shards] == [3, 3, 2]
    whole = opened.gather(np.arange(51))
    ids = np.random.default_rng(0).integers(0, 51, 200)
    assert np.array_equal(opened.gather(ids), whole[ids])
    assert opened.gather(np.empty(0, dtype=np.int64)).shape == (0, 16, 16, 3)
    with pytest.raises(StoreError, match=r"has samples 0\.\.50, asked for 3\.\.51"):
        opened.gather(np.array([3, 51]))


def test_keys_come_in_any_order_with_repeats_across_batches(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "SHARD_IMAGES", 20)
    monkeypatch.setattr(builder, "BATCH_ROWS", 7)
    store.build(image_folder, tmp_path / "s", workers=1)
    opened, ids = ImageStore(tmp_path / "s"), np.array([50, 0, 17, 17, 3, 34])
    keys = [key for key, _, _ in opened.rows()]
    assert len(set(keys)) == 51
    assert opened.keys_at(ids) == [keys[number] for number in ids]
    with pytest.raises(StoreError, match=r"has samples 0\.\.50"):
        opened.keys_at(np.array([51]))


def test_files_that_are_not_readable_images_are_named_counted_and_skipped(
    image_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "images"
    shutil.copytree(image_folder, folder)
    (folder / "class0" / "notes.txt").write_text("not an image")
    (folder / "class0" / ".hidden.png").write_bytes(b"")
    (folder / "class1" / "torn.png").write_bytes((folder / "class1" / "000.png").read_bytes()[:90])
    (folder / "class2" / "html.jpg").write_text("<html>")
    (folder / "class2" / "empty.jpg").touch()
    with caplog.at_level(logging.INFO):
        manifest = store.build(folder, tmp_path / "s", workers=2)
    names = ("class0/notes.txt", "class1/torn.png", "class2/empty.jpg", "class2/html.jpg")
    assert (manifest.rows, manifest.skipped) == (51, len(names))
    assert "passed over: 1 hidden (class0/.hidden.png)" in caplog.text
    lines = (tmp_path / "s-left-out.txt").read_text().splitlines()
    assert sorted(line.partition(": ")[0] for line in lines) == sorted(names)
    with pytest.raises(
        SourceError, match=r"class0/notes.txt: not an image file \(--strict: .* all 4 are named in .*t-left-"
    ):
        store.build(folder, tmp_path / "t", strict=True, workers=1)
    assert not (tmp_path / "t").exists()
    assert len((tmp_path / "t-left-out.txt").read_text().splitlines()) == len(lines)
    (folder / "class0" / "notes.txt").unlink()
    with pytest.raises(SourceError, match=r"class1/torn.png: .*--strict"):
        store.build(folder, tmp_path / "t", strict=True, workers=1)
    for name in names[1:]:
        (folder / name).unlink()
    assert store.build(folder, tmp_path / "t", strict=True, workers=1).rows == 51
    assert not (tmp_path / "t-left-out.txt").exists()


def test_images_of_several_sizes_need_a_size(image_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(image_folder, folder)
    Image.new("RGB", (40, 20), (10, 200, 30)).save(folder / "class2" / "wide.png")
    with pytest.raises(
        SourceError, match=r"wide.png is 40 x 20 px where the images before it are 16 x 16: .*--size-px 16"
    ):
        store.build(folder, tmp_path / "s", workers=1)
    manifest = store.build(folder, tmp_path / "s", size_px=24, workers=1)
    assert (manifest.rows, manifest.image_shape) == (52, (24, 24, 3))
    assert manifest.resize == "shorter side to 24 px (bicubic, antialiased), centre 24 x 24 px cut out"
    assert ImageStore(tmp_path / "s").gather(np.array([51]))[0, 12, 12].tolist() == [10, 200, 30]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def test_pixel_formats_become_rgb_or_are_refused_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    red = Image.new("RGB", (8, 8), (200, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = red.copy()
    turned.paste((10, 10, 200), (0, 0, 8, 4))
    files = {
        "a-palette.png": encoded(red.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
        "b-grey.png": encoded(Image.new("L", (8, 8), 77), "PNG"),
        "c-cmyk.jpg": encoded(red.convert("CMYK"), "JPEG", quality=100),
        "d-alpha.webp": encoded(red.convert("RGBA"), "WEBP", lossless=True),
        "e-jpeg-named.png": encoded(red, "JPEG", quality=100),
        "f-turned.png": encoded(turned, "PNG", exif=exif),
        "g-deep.png": encoded(Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)), "PNG"),
        "h-gif.png": encoded(red, "GIF"),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    manifest = store.build(folder, tmp_path / "s", workers=1)
    assert (manifest.rows, manifest.skipped) == (6, 2)
    assert "left out 1 .png: more than 8 bits a channel (g-deep.png)" in caplog.text
    assert "left out 1 .png: a GIF file, a format that is not read yet (h-gif.png)" in caplog.text
    images = ImageStore(tmp_path / "s").gather(np.arange(6)).astype(int)
    expected = [(200, 10, 10), (77, 77, 77), (200, 10, 10), (200, 10, 10), (200, 10, 10), (200, 10, 10)]
    for image, colour in zip(images, expected, strict=True):
        assert np.abs(image[1, 1] - colour).max() <= 3  # rounding in JPEG and in the palette
    assert images[5, 6, 6].tolist() == [10, 10, 200]


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssl_dist.store.decode.MAX_PIXELS", 63)
    with pytest.raises(SourceError, match="more than 63 pixels: 8 x 8"):
        decode(encoded(Image.new("RGB", (8, 8)), "PNG"), None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size_px": 0}, "size_px 0"),
        ({"size_px": 8001}, "size_px 8001: it is a number of pixels from 1 to 8000"),
        ({"workers": 0}, "workers 0"),
        ({"encoding": "png"}, "encoding 'png'"),
    ],
)
def test_arguments_out_of_range_are_refused(
    arguments: dict[str, object], message: str, image_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        store.build(image_folder, tmp_path / "s", **arguments)  # type: ignore[arg-type]


def test_a_store_is_not_built_at_a_uri(small_store: Path, image_folder: Path) -> None:
    there = "s3://bucket/store"
    for make in (
        lambda: store.build(image_folder, there),
        lambda: store.append(image_folder, there),
        lambda: store.merge([small_store], there),
        lambda: store.merge([there], small_store),
    ):
        with pytest.raises(ConfigError, match=f"{there}: a store is built and changed in a local folder"):
            make()


def test_sources_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file or folder"):
        store.build(tmp_path / "nothing", tmp_path / "s")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no image file"):
        store.build(tmp_path / "empty", tmp_path / "s")
    (tmp_path / "text.tar").write_text("this is no tar file at all")
    with pytest.raises(SourceError, match="is not a complete tar file"):
        store.build(tmp_path / "text.tar", tmp_path / "s")
    (tmp_path / "empty" / "bad.png").write_text("no image")
    with pytest.raises(SourceError, match="none of its 1 image files could be read"):
        store.build(tmp_path / "empty", tmp_path / "s")


def test_a_cut_tar_is_refused(image_folder: Path, tmp_path: Path) -> None:
    whole = tar_of(image_folder, tmp_path / "a.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) * 2 // 3 + 100])
    with pytest.raises(SourceError, match="is not a complete tar file"):
        store.build(tmp_path / "cut.tar", tmp_path / "s", workers=1)


def test_a_store_is_not_overwritten(small_store: Path, image_folder: Path, tmp_path: Path) -> None:
    before = (small_store / "manifest.json").read_bytes()
    with pytest.raises(StoreError, match="holds a store already"):
        store.build(image_folder, small_store)
    assert (small_store / "manifest.json").read_bytes() == before
    (tmp_path / "mine.txt").touch()
    with pytest.raises(StoreError, match="is not empty and not an unfinished store"):
        store.build(image_folder, tmp_path)


def test_files_of_others_are_never_deleted(image_folder: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "shard-mine.arrow"
    theirs.write_text("precious")
    with pytest.raises(StoreError, match="not an unfinished store"):
        store.build(image_folder, tmp_path)
    assert theirs.read_text() == "precious"


def test_two_builds_do_not_share_a_destination(image_folder: Path, tmp_path: Path) -> None:
    with lock.lock_store(tmp_path / "s"), pytest.raises(StoreError, match="is being built by another process"):
        store.build(image_folder, tmp_path / "s")
    assert store.build(image_folder, tmp_path / "s", workers=1).rows == 51


def test_large_files_of_a_tar_make_smaller_shards(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of a tar wait in memory, so a shard is bounded in bytes, too."""
    monkeypatch.setattr(
        writing, "SHARD_MEMORY_BYTES", sum(path.stat().st_size for path in image_folder.rglob("*.png")) // 5
    )
    manifest = store.build(tar_of(image_folder, tmp_path / "a.tar"), tmp_path / "s", workers=2)
    assert 4 <= len(manifest.shards) <= 6
    assert manifest.rows == 51


def test_linked_class_folders_count_and_cycles_do_not(image_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(image_folder / "class0", folder / "class0")
    (folder / "linked").symlink_to(image_folder / "class1")
    (folder / "class0" / "again").symlink_to(folder)
    manifest = store.build(folder, tmp_path / "s", workers=1)
    assert (manifest.rows, manifest.class_names) == (34, ("class0", "linked"))


def test_any_arrow_reader_opens_a_shard(small_store: Path) -> None:
    table = pa.ipc.open_file(small_store / "shard-00000.arrow").read_all()
    assert table.column_names == ["image", "label", "key"]
    assert table.schema.field("image").type == pa.fixed_shape_tensor(pa.uint8(), (16, 16, 3))
    assert table["key"][17].as_py() == "class1/000.png"
    image = table["image"].chunk(0).to_numpy_ndarray()[17]
    assert np.array_equal(image, ImageStore(small_store).gather(np.array([17]))[0])


def test_a_shard_of_a_store_is_not_a_source_of_images(image_folder: Path, small_store: Path, tmp_path: Path) -> None:
    """Shards alone would be tables of images whose classes have no names."""
    store.build(image_folder, tmp_path / "jpeg", encoding="jpeg", workers=1)
    for place in (small_store, tmp_path / "jpeg"):
        for source in (f"file://{place}", f"{place}/*.arrow"):
            with pytest.raises(SourceError, match=r"shard-00000\.arrow is a shard of a store: give the store's folder"):
                store.build(source, tmp_path / "new", workers=1)


def test_zero_writers_are_refused_before_anything_is_written(image_folder: Path, copy: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in copy.iterdir())
    for make in (
        lambda: store.build(image_folder, tmp_path / "new", workers=0),
        lambda: store.append(image_folder, copy, workers=0),
        lambda: store.merge([copy], tmp_path / "new", workers=0),
    ):
        with pytest.raises(ConfigError, match="workers 0: at least 1"):
            make()
    assert not (tmp_path / "new").exists()
    assert sorted(path.name for path in copy.iterdir()) == before


def test_unknown_settings_of_a_reader_are_refused(small_store: Path) -> None:
    for wrong in ({"verify": "typo"}, {"damaged": "typo"}):
        with pytest.raises(StoreError, match="='typo': it is"):
            ImageStore(small_store, **wrong)


@pytest.fixture
def copy(small_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_store, tmp_path / "copy"))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_a_cut_shard_is_found(copy: Path, share: float) -> None:
    shard = copy / "shard-00000.arrow"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: int(len(whole) * share)])
    assert ImageStore(copy).verify() == [("shard-00000.arrow", 0, (0, 51))]
    with pytest.raises(StoreDamaged):
        ImageStore(copy).gather(np.array([5]))
    with pytest.raises(StoreDamaged):
        ImageStore(copy, verify="off").gather(np.array([5]))


def test_a_missing_shard_and_an_unreadable_manifest_give_clear_errors(copy: Path) -> None:
    (copy / "shard-00000.arrow").unlink()
    with pytest.raises(StoreError, match=r"shard-00000.arrow: No such file"):
        ImageStore(copy)
    (copy / "manifest.json").write_text('{"format": "ssl_dist.store/1", "shards": 3}')
    with pytest.raises(StoreError, match=r"manifest.json cannot be read"):
        ImageStore(copy)
    (copy / "manifest.json").write_bytes(b"\xff\x00")
    with pytest.raises(StoreError, match=r"manifest.json cannot be read"):
        ImageStore(copy)


def test_a_manifest_cannot_point_outside_its_store(copy: Path) -> None:
    text = (copy / "manifest.json").read_text().replace("shard-00000.arrow", "../shard-00000.arrow")
    (copy / "manifest.json").write_text(text)
    with pytest.raises(StoreError, match="cannot be read"):
        ImageStore(copy)
