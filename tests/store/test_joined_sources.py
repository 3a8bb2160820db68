"""Sources that were put together: linked folders, joined tars, pictures beside tables, folders of a known class."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ssl_dist import store
from ssl_dist.errors import ConfigError, SourceError
from ssl_dist.reading import exact
from ssl_dist.store import ImageStore
from ssl_dist.store.building.columns import read_column
from ssl_dist.store.building.labelling import read_labels_csv
from ssl_dist.store.building.sources import list_source
from ssl_dist.store.building.sources.base import LeftOut
from tests.store.sources import built, image_column, png, random_images, write_table

IMAGES = random_images(12, 8)


def write(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(IMAGES[number]))
    return folder


def classes_of(opened: ImageStore) -> dict[str, str]:
    """Return the class of each image by its key."""
    shards = opened.manifest.shards
    keys = [
        key
        for shard in shards
        for column in read_column(Path(opened.name) / shard.file, shard, "key")
        for key in column
    ]
    names = [*opened.class_names, "none"]
    return {key.as_py(): names[label] for key, label in zip(keys, opened.labels, strict=True)}


APPENDED = {
    "below": (("cat/a/1.png", "cat/b/2.png"), "", {"cat/a/1.png": "cat", "cat/b/2.png": "cat"}),
    "one folder below": (("cat/a/1.png",), "", {"cat/a/1.png": "cat"}),
    "beside and below": (("cat/1.png", "cat/a/2.png"), "", {"cat/1.png": "cat", "cat/a/2.png": "cat"}),
    "the class itself": (("cat/a/1.png", "cat/b/2.png"), "cat", {"cat/a/1.png": "cat", "cat/b/2.png": "cat"}),
    "the class itself, flat": (("cat/1.png", "cat/2.png"), "cat", {"cat/1.png": "cat", "cat/2.png": "cat"}),
    "two known ones": (("cat/a/1.png", "dog/2.png"), "", {"cat/a/1.png": "cat", "dog/2.png": "dog"}),
    "known ones below a name": (("cat/cat/1.png", "cat/dog/2.png"), "cat", {"cat/1.png": "cat", "dog/2.png": "dog"}),
    "a new one": (("cow/1.png", "pig/2.png"), "", {"cow/1.png": "cow", "pig/2.png": "pig"}),
}


@pytest.mark.parametrize("case", APPENDED)
def test_images_below_the_folder_of_a_known_class_are_of_it(case: str, tmp_path: Path) -> None:
    names, part, expected = APPENDED[case]
    built(write(tmp_path / "photos", "cat/a/x.png", "cat/b/x.png", "dog/a/x.png"), tmp_path / "s")
    store.append(write(tmp_path / "more", *names) / part, tmp_path / "s", workers=1)
    found = classes_of(ImageStore(tmp_path / "s"))
    assert {key: found[key] for key in expected} == expected
    assert len(found) == 3 + len(names)


@pytest.mark.parametrize(("link", "target"), [("fav/cat", "../sorted/cat"), ("aaa", "sorted/cat"), ("zzz", "sorted")])
def test_a_linked_folder_leaves_the_real_one_its_class(link: str, target: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "d", "sorted/cat/1.png", "sorted/dog/2.png", "other/3.png")
    (folder / link).parent.mkdir(exist_ok=True)
    (folder / link).symlink_to(target)
    listed = list_source(folder)
    assert [member.key for member in listed.members()] == ["other/3.png", "sorted/cat/1.png", "sorted/dog/2.png"]
    reason = "a folder that is read already, in its own place or by another link"
    assert listed.left_out == (LeftOut(link, reason),)
    with pytest.raises(SourceError, match="--strict: nothing is built; all 1 are named"):
        store.build(folder, tmp_path / "s", workers=1, strict=True)


def test_a_linked_folder_from_elsewhere_is_read_once(tmp_path: Path) -> None:
    write(tmp_path / "disk", "cat/1.png", "cat/sub/2.png")
    folder = write(tmp_path / "d", "dog/3.png")
    (folder / "a").symlink_to(tmp_path / "disk" / "cat" / "sub")
    (folder / "b").symlink_to(tmp_path / "disk" / "cat")
    (folder / "c").symlink_to(tmp_path / "disk" / "cat")
    (folder / "dog" / "self").symlink_to(folder)
    listed = list_source(folder)
    assert [member.key for member in listed.members()] == ["a/2.png", "b/1.png", "dog/3.png"]
    assert sorted(one.key for one in listed.left_out) == ["b/sub", "c", "dog/self"]


def packed(folder: Path, tar: Path, mode: str = "w") -> Path:
    with tarfile.open(tar, mode) as archive:
        archive.add(folder, ".")
    return tar


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_tars_that_were_joined_are_read_to_their_end(mode: str, tmp_path: Path) -> None:
    parts = [
        packed(write(tmp_path / name, f"{name}/1.png", f"{name}/2.png"), tmp_path / f"{name}.t", mode) for name in "ab"
    ]
    (tmp_path / "ab.tar").write_bytes(b"".join(part.read_bytes() for part in parts))
    opened = built(tmp_path / "ab.tar", tmp_path / "s")
    assert sorted(classes_of(opened).values()) == ["a", "a", "b", "b"]


def test_what_is_no_tar_behind_a_tar_is_as_for_tar_itself(tmp_path: Path) -> None:
    tar = packed(write(tmp_path / "a", "a/1.png", "b/2.png"), tmp_path / "a.tar")
    tar.write_bytes(tar.read_bytes() + b"signature" * 100)
    assert len(built(tar, tmp_path / "s")) == 2


def test_a_picture_beside_tables_or_tars_is_not_the_data(tmp_path: Path) -> None:
    folder = write(tmp_path / "d", "preview.png")
    write_table(pa.table({"image": image_column("struct", IMAGES[:4])}), folder / "a.parquet")
    with pytest.raises(SourceError, match=r"files of several kinds \(1 images beside 1 as .*a\.parquet\)"):
        list_source(folder)
    write(folder, "1.png", "2.png")
    listed = list_source(folder)
    assert (listed.num_images, [one.key for one in listed.left_out]) == (3, ["a.parquet"])


def tables(folder: Path) -> None:
    for name in ("data/train-0.parquet", "data/test-0.parquet"):
        write_table(pa.table({"image": image_column("struct", IMAGES[:4])}), folder / name)


def tars(folder: Path) -> None:
    for name in ("test/000.tar", "train/000.tar"):
        (folder / name).parent.mkdir()
        packed(write(folder.parent / name, "1.png"), folder / name)


@pytest.mark.parametrize("make", [tables, tars])
def test_parts_of_a_data_set_that_go_into_one_store_are_named(
    make: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "d" / "data").mkdir(parents=True)
    make(tmp_path / "d")
    list_source(tmp_path / "d")
    assert "files of test, train go into one store: if these are parts, build a store of each" in caplog.text


def test_merging_a_store_with_its_copy_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    built(write(tmp_path / "d", "1.png", "2.png"), tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    built(write(tmp_path / "e", "1.png", "2.png", "3.png"), tmp_path / "c")
    store.merge([tmp_path / "a", tmp_path / "c"], tmp_path / "ac", workers=1)
    assert "twice" not in caplog.text
    store.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "ab", workers=1)
    assert "the new store will have these images twice" in caplog.text


def test_a_pattern_of_folders_and_an_archive_say_what_to_do(tmp_path: Path) -> None:
    write(tmp_path / "d", "cat/1.png", "dog/2.png")
    with pytest.raises(SourceError, match="no such file; it stands for folders: name them without the wildcard"):
        list_source(f"{tmp_path}/d/*")
    shutil.make_archive(str(tmp_path / "x"), "zip", tmp_path / "d")
    with pytest.raises(SourceError, match=r"nor any of STL-10 or CIFAR: unpack .*x\.zip first"):
        list_source(tmp_path / "x.zip")


@pytest.mark.parametrize("spelling", ["./{}", "{}", "a/../{}"])
def test_the_side_of_a_split_does_not_depend_on_how_a_path_is_written(spelling: str, tmp_path: Path) -> None:
    keys = [f"cat/é{number}.png" for number in range(40)]
    folder, listed = write(tmp_path / "d", *(f"cat/é{number % 12}-{number}.png" for number in range(12))), {}
    for form, names in {"plain": keys, "other": [spelling.format(key) for key in keys]}.items():
        with tarfile.open(tmp_path / f"{form}.tar", "w") as archive:
            for name in names:
                archive.add(next(folder.glob("cat/*.png")), name)
        chosen = list_source(tmp_path / f"{form}.tar").select((0, 0.5)).members()
        listed[form] = [member.key.rpartition("/")[2] for member in chosen]
    assert listed["plain"] == listed["other"]
    assert 5 < len(listed["plain"]) < 35


LABELS = {
    "floats of a column with a gap": ("0.0\n1.0\n10.0\n2.0\n-1.0", ("0", "1", "2", "10"), ""),
    "a float among names": ("0.0\ncat\n1.0\ncat\ncat", ("0.0", "1.0", "cat"), ""),
    "a missing value of pandas": ("cat\nnan\ndog\n\ncat", ("cat", "dog", "nan"), "has a class nan: where it means"),
    "another one": ("cat\nNone\ndog\nNone\ncat", ("None", "cat", "dog"), "has a class None: where it means"),
    "one of R": ("NA\nNA\ndog\n\ncat", ("NA", "cat", "dog"), "has a class NA: where it means"),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_as_programs_write_them(case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text, names, warning = LABELS[case]
    lines = [f"{number}.png,{label}" for number, label in enumerate(text.split("\n"))]
    (tmp_path / "l.csv").write_text("\n".join(["key,label", *lines]) + "\n")
    assert read_labels_csv(tmp_path / "l.csv").class_names == names
    assert (warning in caplog.text) if warning else not caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"key,label\na.png,-2\n", "line 2: label -2: leave it empty if there is none"),
        (b"key,label\na.png,-100.0\n", "line 2: label -100.0: leave it empty"),
        (b"key;label\na.png;cat\n", "its first line must be key,label, with a comma"),
        ("key,label\na.png,Tür\n".encode("latin-1"), r"is not encoded in UTF-8 \(.*\): save it so"),
        ("key,label\na.png,cat\n".encode("utf-16"), r"is not encoded in UTF-8 \(.*\): save it so"),
    ],
)
def test_a_table_of_labels_that_cannot_be_read_says_how_to_mend_it(
    content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "l.csv").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_labels_csv(tmp_path / "l.csv")


def test_epochs_that_were_computed_are_exact_for_data_sets_of_millions() -> None:
    random = np.random.default_rng(0)
    for images in (1_281_167, 14_197_122, 999_983):
        for batch, steps in zip(
            random.integers(32, 4096, 200).tolist(), random.integers(1, 50_000, 200).tolist(), strict=True
        ):
            assert exact(steps * batch / images) * images // batch == steps


LAYOUTS = {
    "VOC": ("JPEGImages", "SegmentationClass", "SegmentationObject"),
    "COCO": ("train2017", "val2017"),
    "CamVid": ("train", "trainannot", "val"),
    "Kaggle": ("train_images", "test_images"),
    "images and masks": ("image", "mask"),
    "with others": ("images", "masks", "previews"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders_of_parts_and_masks_that_became_classes_are_named(
    layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    built(write(tmp_path / "d", *(f"{name}/{name}.png" for name in LAYOUTS[layout])), tmp_path / "s")
    parts = sorted(set(LAYOUTS[layout]) - {"previews"})
    assert f"{', '.join(parts)} became classes: if these folders are parts, build a store of each" in caplog.text


@pytest.mark.parametrize("names", [("mask", "no_mask"), ("test", "kit"), ("trainer", "valve"), ("labels", "cat")])
def test_classes_that_are_like_parts_are_classes(
    names: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    built(write(tmp_path / "d", *(f"{name}/1{name}.png" for name in names)), tmp_path / "s")
    assert "became classes" not in caplog.text


@pytest.mark.parametrize(("old", "new"), [(("cat", "dog"), ("0", "1")), (("0", "1"), ("cat", "dog"))])
def test_numbers_beside_names_of_classes_are_named(
    old: tuple[str, str], new: tuple[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    built(write(tmp_path / "d", *(f"{name}/1.png" for name in old)), tmp_path / "s")
    store.append(write(tmp_path / "e", *(f"{name}/2.png" for name in new)), tmp_path / "s", workers=1)
    assert f"classes {', '.join(old)} and {', '.join(new)} stand side by side now" in caplog.text


def test_a_file_of_a_class_that_others_lack_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path / "d", "cat/0.png", "cat/1.png", "dog/2.png")
    (folder / "cat" / "0.cls").write_text("1")
    opened = built(folder, tmp_path / "s")
    assert opened.labels.tolist() == [1, -1, -1]
    assert "2 images have no .cls file as others have, so they get no label, nor their folder's" in caplog.text


def test_a_store_that_is_appended_hands_on_how_its_images_were_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    built(write(tmp_path / "d", "1.png"), tmp_path / "a")
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "2.png").write_bytes(png(random_images(1, 16)[0]))
    built(tmp_path / "e", tmp_path / "b", size_px=8, alpha="black")
    manifest = store.append(tmp_path / "b", tmp_path / "a", workers=1)
    assert manifest.resize == ImageStore(tmp_path / "b").manifest.resize
    assert manifest.alpha == "mixed"
    assert "transparency differs" in caplog.text
    with pytest.raises(ConfigError, match="alpha drop: the images of a store are as that store has them"):
        store.build(tmp_path / "b", tmp_path / "c", alpha="drop", workers=1)


@pytest.mark.parametrize("name", ["Icon\r", "ehthumbs.db", "Picasa.ini"])
def test_files_that_systems_make_are_passed_over(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "d", "1.png")
    (folder / name).touch()
    store.build(folder, tmp_path / "s", workers=1, strict=True)
