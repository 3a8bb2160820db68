"""Folders, patterns and URIs: the files that a source stands for, and the kinds that they are."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import fs

from ssl_dist import store
from ssl_dist.errors import SourceError
from ssl_dist.store.building.sources import list_source
from ssl_dist.store.building.sources.files import expand_pattern
from tests.store.sources import assert_holds, built, image_column, left_out, png, random_images, shard_of, write_table


def test_files_too_large_for_an_image_are_skipped_with_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small, large = png(np.zeros((16, 16, 3), dtype=np.uint8)), png(random_images(1, 16)[0])
    for module in ("decode", "building.sources.images"):
        monkeypatch.setattr(f"ssl_dist.store.{module}.MAX_FILE_BYTES", len(large) - 1)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "small.png").write_bytes(small)
    (tmp_path / "d" / "large.png").write_bytes(large)
    table = pa.table({"image": pa.array([large, small], pa.binary())})
    sources = {
        tmp_path / "d": "large.png",
        shard_of(tmp_path / "a.tar", {"b.png": large, "c.png": small}): "b.png",
        write_table(table, tmp_path / "t.parquet"): "t.parquet/0",
    }
    for number, (source, name) in enumerate(sources.items()):
        opened = built(source, tmp_path / str(number))
        assert (len(opened), opened.manifest.skipped) == (1, 1)
        assert f"a file of more than {len(large) - 1:,} bytes ({name})" in caplog.text


def test_patterns(tmp_path: Path) -> None:
    for name in ("a/x/1.png", "a/y/2.png", "a/y/z/3.png", "b/x/4.jpg", "b/[k]/5.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")

    def keys(pattern: str) -> list[str]:
        return [Path(file.path).stem for file in expand_pattern(f"{tmp_path}/{pattern}")]

    assert keys("**/*.png") == ["1", "2", "3", "5"]
    assert keys("a/*/*.png") == ["1", "2"]
    assert keys("*/x/?.*") == ["1", "4"]
    assert keys("a/[!x]/*.png") == ["2"]
    assert keys("{b,a}/x/*") == ["4", "1"]
    assert keys("a/{x/1,y/2}.png") == ["1", "2"]
    assert [file.key for file in expand_pattern(f"{tmp_path}/a/**/*.png")] == ["x/1.png", "y/2.png", "y/z/3.png"]
    assert [file.key for file in expand_pattern(f"{tmp_path}/{{b,a}}/x/*")] == ["b/x/4.jpg", "a/x/1.png"]
    assert keys("a") == ["1", "2", "3"]
    for pattern in ("c/*", "a/*.png", "{5..3}.png"):
        with pytest.raises(SourceError, match=r"no such file|must go from a smaller to a larger"):
            keys(pattern)
    assert keys("b/[[]k]/*") == ["5"], "a class of one bracket"
    assert keys("a/**/*.p[!a-m]g") == ["1", "2", "3"]
    for pattern in ("[z-a]*.png", "[", "a**"):
        with pytest.raises(SourceError, match="no such file"):
            keys(pattern)


@pytest.mark.parametrize("pattern", ["**/" * 30 + "c", "**/a/" * 30 + "c", "*a" * 60 + "c", "[!b]*" * 60 + "c"])
def test_every_pattern_ends_in_bounded_time(pattern: str, tmp_path: Path) -> None:
    """One regular expression for the whole path would backtrack for ever."""
    for name in ("/".join("a" * 60) + "/b.png", 200 * "a" + ".png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    start = time.process_time()
    with pytest.raises(SourceError, match="no such file"):
        expand_pattern(f"{tmp_path}/{pattern}")
    assert time.process_time() - start < 1  # 0.01 s on an idle core


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{a}" * 2000 + "*", "no such file"),
        ("{a,b}" * 30, "stand for more than 1,000,000 files"),
        ("{0.." + "9" * 30 + "}", "no such file"),
        ("a" * 300, "no such file"),
        ("a\0b", "no such file"),
        ("*\0b", "no such file"),
    ],
)
def test_patterns_that_stand_for_too_much_are_refused(pattern: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=message):
        list_source(f"{tmp_path}/{pattern}")


@pytest.mark.parametrize(
    "pattern",
    ["{class2,class0}", "{class2,class0}/*.png", "class{2,0}/*.png", "{class2/*,class0/0*}.png", "cl{ass2,ass0}/"],
)
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_folders_in_braces_are_classes_with_the_keys_of_the_folder_above(
    scheme: str, pattern: str, image_folder: Path
) -> None:
    whole = list_source(image_folder)
    all_labels = {member.key: whole.class_names[member.label] for member in whole.members()}
    listed = list_source(f"{scheme}{image_folder}/{pattern}")
    labels = {member.key: listed.class_names[member.label] for member in listed.members()}
    assert labels == {key: name for key, name in all_labels.items() if name != "class1"}
    assert [*dict.fromkeys(labels.values())] == ["class2", "class0"], "in the order of the braces"


def test_a_uri_lists_the_same_files_as_a_path(image_folder: Path, tmp_path: Path) -> None:
    here, there = list_source(image_folder), list_source(f"file://{image_folder}/**/*.png")
    assert [member[:2] for member in there.members()] == [member[:2] for member in here.members()]
    assert there.class_names == here.class_names


def test_an_error_that_quotes_a_name_is_one_line_of_text(tmp_path: Path) -> None:
    """A file name may contain control characters, or bytes that are not text."""
    with pytest.raises(SourceError) as raised:
        list_source(f"{tmp_path}/a\x1b[2J\n\udcff")
    assert str(raised.value) == f"{tmp_path}/a\\x1b[2J\\n\\udcff: no such file"


def test_an_image_is_recognised_by_its_content(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = random_images(1, 16)[0]
    (tmp_path / "d").mkdir()
    files = {
        "a.jpg": png(image),
        "b.jpg": b"this is no image",
        "c.txt": png(image),
        "d": png(image),
        "e.PNG": png(image),
    }
    for name, content in files.items():
        (tmp_path / "d" / name).write_bytes(content)
    assert_holds(built(tmp_path / "d", tmp_path / "s"), np.stack([image, image, image]), [-1, -1, -1])
    assert "left out 1 .jpg: a file that does not begin as an image does (b.jpg)" in caplog.text
    assert "left out 1 .txt: not an image file (c.txt)" in caplog.text


def test_a_bucket_is_read_like_a_folder(bucket: str, image_folder: Path, tmp_path: Path) -> None:
    filesystem, _ = fs.FileSystem.from_uri(bucket)
    for file in image_folder.rglob("*.*"):
        with filesystem.open_output_stream(f"bucket/images/{file.relative_to(image_folder).as_posix()}") as out:
            out.write(file.read_bytes())
    here = built(image_folder, tmp_path / "here")
    for number, pattern in enumerate(("images", "images/**/*.*")):
        there = built(bucket.replace("bucket/runs", f"bucket/{pattern}"), tmp_path / str(number))
        assert_holds(there, here.gather(np.arange(len(here))), here.labels.tolist())
        assert there.class_names == here.class_names
    with pytest.raises(SourceError, match="no such file"):
        list_source(bucket.replace("bucket/runs", "bucket/nothing/*.png"))
    with pytest.raises(SourceError, match=r"cannot be reached|no such file"):
        list_source(bucket.replace("bucket/runs", "nobucket/*.png"))
    with pytest.raises(SourceError, match="is not a place that can be read"):
        list_source("nowhere://bucket/*.png")


def test_files_of_several_kinds_are_refused(tmp_path: Path) -> None:
    shard_of(tmp_path / "a.tar", {"0.png": png(random_images(1, 16)[0])})
    write_table(pa.table({"image": image_column("binary", random_images(1, 16))}), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=r"files of several kinds \(table, tar\)"):
        list_source(tmp_path)
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(
        SourceError, match=r"no image file .* and no tar, Parquet or Arrow file, nor any of STL-10 or CIFAR"
    ):
        list_source(tmp_path / "notes.txt")


@pytest.mark.parametrize("name", ["b.parquet", "b.arrow", "b.tar", "b.PARQUET"])
def test_a_broken_file_among_whole_ones_stops_the_build(name: str, tmp_path: Path) -> None:
    write_table(pa.table({"image": image_column("binary", random_images(1, 16))}), tmp_path / "a.parquet")
    (tmp_path / name).write_bytes(b"<html>404</html>")
    with pytest.raises(SourceError, match=rf"{name} is not a|several kinds \(table, tar\)"):
        list_source(tmp_path)


def test_other_files_among_tables_are_named_and_stop_a_strict_build(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    write_table(pa.table({"image": image_column("binary", random_images(1, 16))}), folder / "a.parquet")
    (folder / "b.txt").write_bytes(b"<html>404</html>")
    assert built(folder, tmp_path / "s").manifest.skipped == 1
    assert "left out 1 .txt: not an image file (b.txt)" in caplog.text
    with pytest.raises(SourceError, match=r"b\.txt: not an image file \(--strict"):
        store.build(folder, tmp_path / "t", workers=1, strict=True)
    listed, by_pattern = list_source(folder), list_source(f"{folder}/*")
    assert (by_pattern.num_images, left_out(by_pattern)) == (listed.num_images, left_out(listed)) == (1, ("b.txt",))


@pytest.mark.parametrize("beside", ["a.png", "a.parquet"])
def test_pipes_are_not_opened(beside: str, tmp_path: Path) -> None:
    write_table(pa.table({"image": image_column("binary", random_images(1, 16))}), tmp_path / "a.parquet")
    if beside == "a.png":
        (tmp_path / "a.parquet").replace(tmp_path / "a.png")
    for name in ("b.png", "b.parquet", "b_X.bin"):
        os.mkfifo(tmp_path / name)
    listed = list_source(tmp_path)
    assert (listed.num_images, sorted(left_out(listed))) == (1, ["b.parquet", "b.png", "b_X.bin"])


def test_class_folders_whose_names_are_not_text(tmp_path: Path) -> None:
    """The manifest, which lists the class names, is text."""
    for name in (b"a", b"\xff"):
        folder = os.fsencode(tmp_path) + b"/d/" + name
        os.makedirs(folder)
        with open(folder + b"/0.png", "wb") as file:
            file.write(png(random_images(1, 16)[0]))
    opened = built(tmp_path / "d", tmp_path / "s")
    assert (opened.class_names, opened.labels.tolist()) == (("a", "?"), [0, 1])
    os.rename(os.fsencode(tmp_path) + b"/d/a", os.fsencode(tmp_path) + b"/d/\xfe")
    with pytest.raises(SourceError, match="would become the same class: rename them"):
        list_source(tmp_path / "d")
