"""Labels that a person writes: in class folders, columns and CSV files, for a new store or one that is there."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import fs

from ssl_dist import store
from ssl_dist.errors import ConfigError, SourceError, StoreDamaged, StoreError
from ssl_dist.store import ImageStore, count_labels
from ssl_dist.store.building import builder
from ssl_dist.store.schema import Manifest
from ssl_dist.uris import join_uri
from tests.command import Command
from tests.store.sources import assert_holds, built, image_column, png, random_images, write_table

IMAGES = random_images(6, 16)
COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def folder_of(path: Path, names: list[str], first: int = 0) -> Path:
    for number, name in enumerate(names, first):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(png(IMAGES[number]))
    return path


def table_of(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(("key,label", *rows)) + "\n", encoding="utf-8")
    return path


def names_of(path: Path) -> list[str]:
    opened = ImageStore(path)
    return [[*opened.class_names, "-"][label] for label in opened.labels]


# Class folders


def test_a_class_has_one_name_in_any_form_of_unicode(tmp_path: Path) -> None:
    built(folder_of(tmp_path / "d", [f"{COMPOSED}/0.png", f"{DECOMPOSED}/1.png", "the/2.png"]), tmp_path / "s")
    assert sorted(names_of(tmp_path / "s")) == sorted([COMPOSED, COMPOSED, "the"])


@pytest.mark.parametrize("name", [COMPOSED, DECOMPOSED, f"{COMPOSED} ", f" {DECOMPOSED}"])
def test_append_and_merge_know_a_class_in_any_form(name: str, tmp_path: Path) -> None:
    built(folder_of(tmp_path / "d", ["bar/0.png", f"{COMPOSED}/1.png"]), tmp_path / "s")
    built(folder_of(tmp_path / "e", [f"{name}/2.png", "zoo/3.png"], 2), tmp_path / "t")
    store.merge([tmp_path / "s", tmp_path / "t"], tmp_path / "m", workers=1)
    store.append(tmp_path / "e", tmp_path / "s", workers=1)
    for path in ("s", "m"):
        assert ImageStore(tmp_path / path).class_names == ("bar", COMPOSED, "zoo")
        assert sorted(names_of(tmp_path / path)) == sorted(["bar", COMPOSED, COMPOSED, "zoo"])


def test_a_store_whose_classes_are_decomposed_is_appended_to(tmp_path: Path) -> None:
    """Earlier versions kept names as they were written."""
    manifest = built(folder_of(tmp_path / "d", ["bar/0.png", f"{COMPOSED}/1.png"]), tmp_path / "s").manifest
    old = manifest.model_copy(update={"class_names": ("bar", DECOMPOSED)}).with_checksum()
    old.write(tmp_path / "s")
    store.append(folder_of(tmp_path / "e", [f"{COMPOSED}/2.png", "bar/3.png"], 2), tmp_path / "s", workers=1)
    assert names_of(tmp_path / "s") == ["bar", DECOMPOSED, "bar", DECOMPOSED]


@pytest.mark.parametrize("source", ["cat", "cat/*.png", "more", "more/**/*.png", "more.tar"])
def test_one_class_folder_is_appended_as_that_class(source: str, tmp_path: Path) -> None:
    built(folder_of(tmp_path / "d", ["bird/0.png", "cat/1.png"]), tmp_path / "s")
    folder_of(tmp_path / "cat", ["2.png"], 2)
    folder_of(tmp_path / "more" / "cat", ["2.png"], 2)
    shutil.make_archive(str(tmp_path / "more"), "tar", tmp_path, "more")
    store.append(f"{tmp_path}/{source}", tmp_path / "s", workers=1)
    assert names_of(tmp_path / "s") == ["bird", "cat", "cat"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train", "val"], "train, val became classes"),
        (["images", "Masks"], "Masks, images became classes"),
        (["Cat", "cat"], "classes Cat and cat differ"),
        (["train", "boat"], ""),
        (["test"], ""),
    ],
)
def test_classes_that_are_likely_none_are_warned_of(
    names: list[str], message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    built(folder_of(tmp_path / "d", [f"{name}/{number}.png" for number, name in enumerate(names)]), tmp_path / "s")
    said = [one.getMessage() for one in caplog.records if one.levelname == "WARNING" and "class" in one.getMessage()]
    assert len(said) == bool(message)
    assert all(one.startswith(message) for one in said)


@pytest.mark.parametrize("source", ["cat", "cat/*.png"])
def test_a_class_folder_that_is_appended_by_itself_keeps_the_keys_of_its_images(source: str, tmp_path: Path) -> None:
    built(folder_of(tmp_path / "d", ["bird/0.png", "cat/1.png"]), tmp_path / "s")
    with pytest.raises(SourceError, match=r"has cat/1\.png already, with the same pixels"):
        store.append(f"{tmp_path}/d/{source}", tmp_path / "s", workers=1)


def test_labels_of_a_key_that_several_images_have_are_refused(tmp_path: Path) -> None:
    for number in range(2):
        folder = folder_of(tmp_path / f"d{number}", ["0.png", f"{number + 1}.png"], 3 * number)
        built(shutil.make_archive(str(folder), "tar", folder), tmp_path / f"s{number}")
    store.merge([tmp_path / "s0", tmp_path / "s1"], tmp_path / "m", workers=1)
    with pytest.raises(ConfigError, match=r"keys that several images of .*m have \(0\.png\)"):
        store.label(tmp_path / "m", table_of(tmp_path / "l.csv", "0.png,cat"))
    with pytest.raises(ConfigError, match=r"keys that several images of .* have \(0\.png\)"):
        built(f"{tmp_path}/d{{0,1}}.tar", tmp_path / "n", labels_csv=table_of(tmp_path / "l.csv", "0.png,cat"))
    store.label(tmp_path / "m", table_of(tmp_path / "k.csv", "1.png,cat", "2.png,-1.0"))
    assert sorted(names_of(tmp_path / "m")) == ["-", "-", "-", "cat"]


def test_images_without_a_label_are_counted(command: Command, tmp_path: Path) -> None:
    folder_of(tmp_path / "d", ["bird/0.png", "cat/1.png", "2.png", "3.png"])
    built_ = command("store", "build", tmp_path / "d", tmp_path / "s", "--workers", 1, "--json")
    assert built_.json["images_per_class"] == [1, 1]
    assert built_.json["without_label"] == 2
    assert "2 images" in next(line for line in built_.err.splitlines() if "without a label" in line)
    folder_of(tmp_path / "flat", ["4.png"], 4)
    added = command("store", "append", tmp_path / "flat", tmp_path / "s", "--workers", 1)
    assert "3 images" in next(line for line in added.out.splitlines() if "without a label" in line)
    assert "2: bird (1), cat (1)" in added.out


# Columns


@pytest.mark.parametrize("column", ["label", "Label", "LABELS", "Cls", "Class", "Fine_Label"])
def test_a_column_of_labels_is_known_in_any_case(column: str, tmp_path: Path) -> None:
    table = pa.table({"Image": image_column("binary", IMAGES[:4]), column: pa.array([1, -1, None, 0])})
    assert_holds(built(write_table(table, tmp_path / "t.parquet"), tmp_path / "s"), IMAGES[:4], [1, -1, -1, 0])
    assert count_labels(tmp_path / "s", Manifest.read(tmp_path / "s")).tolist() == [1, 1, 2]


def test_two_columns_that_differ_in_case_are_refused(tmp_path: Path) -> None:
    ones = pa.array([1, 1])
    table = pa.table({"image": image_column("binary", IMAGES[:2]), "label": ones, "Label": ones})
    with pytest.raises(SourceError, match=r"has the columns label and Label: rename all but one"):
        built(write_table(table, tmp_path / "t.parquet"), tmp_path / "s")


# CSV files


@pytest.mark.parametrize(
    "text",
    [
        "key,label\na.png,cat\nb.png,dog\nc.png,\nd.png,-1\n",
        "\ufeffKey , Label\na.png, cat \nb.png,dog\n",
        'label,note,key\r\ncat,"x, y",a.png\r\ndog,,b.png\r\n',
        f"key,label\na.png,cat\na.png,cat\n\nb.png,dog\n{unicodedata.normalize('NFD', 'é.png')},-1\n",
    ],
)
def test_a_csv_file_gives_a_flat_folder_labels(text: str, tmp_path: Path) -> None:
    folder_of(tmp_path / "d", ["a.png", "b.png", "c.png", "d.png", unicodedata.normalize("NFC", "é.png")])
    (tmp_path / "l.csv").write_text(text, encoding="utf-8", newline="")
    built(tmp_path / "d", tmp_path / "s", labels_csv=tmp_path / "l.csv")
    assert names_of(tmp_path / "s") == ["cat", "dog", "-", "-", "-"]


def test_a_csv_file_may_lie_in_its_source(tmp_path: Path) -> None:
    folder_of(tmp_path / "d", ["a.png", "b.png"])
    table = table_of(tmp_path / "d" / "mine.csv", "a.png,cat")
    assert built(tmp_path / "d", tmp_path / "s", labels_csv=table, strict=True).manifest.skipped == 0


@pytest.mark.parametrize("kind", ["folder", "tar", "table", "store"])
def test_any_source_takes_labels_by_key(kind: str, tmp_path: Path) -> None:
    source: Path = folder_of(tmp_path / "d", ["x/a.png", "y/b.png", "y/c.png"])
    if kind == "tar":
        shutil.make_archive(str(tmp_path / "d"), "tar", tmp_path / "d")
        source = tmp_path / "d.tar"
    elif kind == "table":
        source = write_table(pa.table({"image": image_column("binary", IMAGES[:3])}), tmp_path / "t.parquet")
    elif kind == "store":
        built(source, tmp_path / "first")
        source = tmp_path / "first"
    with_keys = built(source, tmp_path / "plain")
    keys = [key for key, _, _ in with_keys.rows()]
    table = table_of(tmp_path / "l.csv", f"{keys[0]},10", f"{keys[2]},9")
    opened = built(source, tmp_path / "s", labels_csv=table)
    assert (opened.class_names, names_of(tmp_path / "s")) == (("9", "10"), ["10", "-", "9"])
    table_of(tmp_path / "l.csv", f"{keys[0]},9", f"{keys[2]},10")
    with pytest.raises(StoreError, match="holds a store already"):
        built(source, tmp_path / "s", labels_csv=table, keep=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("key,label\nz.png,cat\na.png,cat\n", r"has keys that .* does not have \(z\.png\)"),
        ("key,label\n" + "".join(f"{n}.png,cat\n" for n in range(9)), r"\(0\.png, 1\.png, .* and 4 more\)"),
        ("key,label\na.png,cat\nb.png,dog\na.png,dog\n", r"lines 2 and 4: two labels of a\.png"),
        ("a.png,cat\n", r"begins with 'a\.png,cat': its first line must be key,label"),
        ("key;label\na.png;cat\n", r"begins with 'key;label'"),
        ("", r"begins with ''"),
        ("key,label\n", r"has no line of a key and a label"),
        ("key,label\na.png\n", r"line 2: it has no key, or not 2 fields"),
        ("key,label\n,cat\n", r"line 2: it has no key"),
        ('key,label\n"a.png,cat\n', r"cannot be read as a table of keys and labels"),
    ],
)
def test_wrong_files_of_labels_are_refused_before_anything_is_built(text: str, message: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "d", ["a.png", "b.png"])
    (tmp_path / "l.csv").write_text(text)
    built(folder, tmp_path / "there")
    with pytest.raises(ConfigError, match=message):
        store.build(folder, tmp_path / "s", labels_csv=tmp_path / "l.csv", workers=1)
    with pytest.raises(ConfigError, match=message):
        store.label(tmp_path / "there", tmp_path / "l.csv")
    assert not (tmp_path / "s").exists()


def test_a_part_of_a_source_takes_its_labels_of_a_file_for_all(image_folder: Path, tmp_path: Path) -> None:
    keys = [key for key, _, _ in built(image_folder, tmp_path / "whole").rows()]
    table = table_of(tmp_path / "l.csv", *(f"{key},{key[-5]}" for key in keys))
    for share in ((0.0, 0.3), (0.3, 1.0)):
        opened = built(image_folder, tmp_path / str(share), labels_csv=table, share=share)
        assert names_of(tmp_path / str(share)) == [key[-5] for key, _, _ in opened.rows()]


# A store that is there


@pytest.fixture
def labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Build a store of two shards, and give its images other labels."""
    monkeypatch.setattr(builder, "SHARD_IMAGES", 2)
    built(folder_of(tmp_path / "d", ["a/0.png", "a/1.png", "b/2.png", "c/3.png"]), tmp_path / "s")
    table = table_of(tmp_path / "l.csv", "a/1.png,b", "c/3.png,x", "b/2.png,")
    store.label(tmp_path / "s", table, new_classes=True)
    return tmp_path / "s"


def test_labels_of_a_store_are_replaced_and_no_image_is_written(labelled: Path) -> None:
    opened = ImageStore(labelled, verify="full")
    assert names_of(labelled) == ["a", "b", "-", "x"]
    assert opened.class_names == ("a", "b", "x"), "c has lost its only image"
    assert opened.labels_at(np.array([3, 0, 1])).tolist() == [2, 0, 1]
    assert [label for _, label, _ in opened.rows()] == opened.labels.tolist()
    assert_holds(opened, IMAGES[:4], [0, 1, -1, 2])
    assert count_labels(labelled, opened.manifest).tolist() == [1, 1, 1, 1]
    assert len(list(labelled.glob("labels-*"))) == 1
    assert not list(labelled.glob(".*"))


def test_a_store_without_labels_gets_some_and_then_more(tmp_path: Path) -> None:
    built(folder_of(tmp_path / "d", ["0.png", "1.png", "2.png"]), tmp_path / "s")
    store.label(tmp_path / "s", table_of(tmp_path / "l.csv", "1.png,dog"))
    assert names_of(tmp_path / "s") == ["-", "dog", "-"]
    for name in ("l.csv", "m.csv"):
        table_of(tmp_path / name, "0.png,cat", "2.png,dog")
        store.label(tmp_path / "s", tmp_path / name, new_classes=True)
    assert (names_of(tmp_path / "s"), ImageStore(tmp_path / "s").class_names) == (["cat", "dog", "dog"], ("dog", "cat"))
    assert len(list((tmp_path / "s").glob("labels-*"))) <= 2


def test_wrong_classes_are_named(tmp_path: Path) -> None:
    built(folder_of(tmp_path / "d", [f"{COMPOSED}/0.png", "dog/1.png"]), tmp_path / "s")
    table = table_of(tmp_path / "l.csv", f"dog/1.png,{DECOMPOSED}", f"{COMPOSED}/0.png,dgo")
    with pytest.raises(ConfigError, match=r"has classes that .* does not have \(dgo\): .*--new-classes"):
        store.label(tmp_path / "s", table)
    assert sorted(names_of(tmp_path / "s")) == sorted([COMPOSED, "dog"])
    with pytest.raises(ConfigError, match="in a local folder"):
        store.label("s3://bucket/s", table)


def test_append_merge_and_builds_keep_given_labels(labelled: Path, tmp_path: Path) -> None:
    more = folder_of(tmp_path / "more", ["x/4.png", "y/5.png"], 4)
    store.append(more, labelled, workers=1)
    assert names_of(labelled) == ["a", "b", "-", "x", "x", "y"]
    assert ImageStore(labelled, verify="full").labels_at(np.array([5, 2])).tolist() == [3, -1]
    assert count_labels(labelled, Manifest.read(labelled)).tolist() == [1, 1, 2, 1, 1]
    store.merge([labelled, labelled], tmp_path / "m", workers=1)
    assert names_of(tmp_path / "m") == 2 * names_of(labelled)
    built(labelled, tmp_path / "again", size_px=8)
    assert names_of(tmp_path / "again") == names_of(labelled)
    store.label(labelled, table_of(tmp_path / "l.csv", "y/5.png,a"))
    assert names_of(labelled) == ["a", "b", "-", "x", "x", "a"]
    assert ImageStore(labelled, verify="full").class_names == ("a", "b", "x")


def test_labels_of_a_store_in_a_bucket(labelled: Path, bucket: str, tmp_path: Path) -> None:
    uri = join_uri(bucket, tmp_path.name)
    system, base = fs.FileSystem.from_uri(uri)
    fs.copy_files(str(labelled), base, fs.LocalFileSystem(), system)
    opened = ImageStore(uri, cache=tmp_path / "cache")
    assert opened.labels_at(np.array([1, 3])).tolist() == [1, 2]
    assert opened.labels.tolist() == [0, 1, -1, 2]
    assert opened.remote is not None
    assert opened.remote.num_fetched == 0, "labels need no shard"
    assert opened.verify() == []
    system.delete_file(f"{base}/{opened.manifest.labels.file}")  # type: ignore[union-attr]
    with pytest.raises(StoreDamaged, match="is missing"):
        _ = ImageStore(uri, cache=tmp_path / "cache").labels


@pytest.mark.parametrize("change", ["flipped", "cut", "longer", "gone"])
def test_damaged_labels_are_found(change: str, labelled: Path, command: Command) -> None:
    [file] = labelled.glob("labels-*")
    content = bytearray(file.read_bytes())
    if change == "flipped":
        content[-3] ^= 1
    file.write_bytes({"cut": content[:-4], "longer": content + b"0"}.get(change, content))
    if change == "gone":
        file.unlink()
    with pytest.raises(StoreDamaged, match=r"labels-.*(differs from its checksum|is missing)"):
        _ = ImageStore(labelled).labels
    with pytest.raises(StoreDamaged, match="1 damaged"):
        ImageStore(labelled, verify="full")
    found = command("store", "verify", labelled, "--json")
    assert (found.code, found.json["damaged"]) == (1, [{"shard": file.name, "batch": -1, "rows": [0, 4]}])
    assert f"damaged: {file.name}, labels, samples 0..3" in found.err


@pytest.mark.parametrize(
    "array", [np.array([0, 1, 3, 0], np.int32), np.array([0, 1, -2, 0], np.int32), np.array([0, 1], np.int64)]
)
def test_wrong_labels_with_a_right_checksum_are_damage(array: np.ndarray, labelled: Path) -> None:
    from ssl_dist.store.labels import write_labels

    manifest = Manifest.read(labelled)
    entry = write_labels(labelled, array, 3)
    if array.dtype == np.int64:
        entry = entry.model_copy(update={"rows": 4, "bytes": entry.bytes})
    wrong = manifest.model_copy(update={"labels": entry})
    wrong.with_checksum().write(labelled)
    with pytest.raises(StoreDamaged, match=r"has no 4 labels of -1 to 2"):
        _ = ImageStore(labelled).labels


def test_an_image_in_a_damaged_batch_that_is_skipped_has_no_label(labelled: Path) -> None:
    shard = labelled / "shard-00000.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert ImageStore(labelled, damaged="skip").labels.tolist() == [-1, -1, -1, 2]


def test_a_manifest_without_given_labels_is_as_it_was(image_folder: Path, tmp_path: Path) -> None:
    store.build(image_folder, tmp_path / "s", workers=1)
    assert "labels" not in json.loads((tmp_path / "s" / "manifest.json").read_text())


def test_commands_label_and_show_the_images_of_each_class(command: Command, tmp_path: Path) -> None:
    folder_of(tmp_path / "d", ["0.png", "1.png", "2.png"])
    table = table_of(tmp_path / "l.csv", "0.png,cat", "1.png,cat")
    options = ("--labels-csv", table, "--workers", 1, "--json")
    assert command("store", "build", tmp_path / "d", tmp_path / "s", *options).json["without_label"] == 1
    table_of(tmp_path / "l.csv", "2.png,dog")
    assert command("store", "label", tmp_path / "s", table).code == 2
    labelled = command("store", "label", tmp_path / "s", table, "--new-classes", "--json")
    assert (labelled.json["class_names"], labelled.json["images_per_class"]) == (["cat", "dog"], [2, 1])
    shown = command("store", "info", tmp_path / "s")
    assert "2: cat (2), dog (1)" in shown.out
    assert "without a label" not in shown.out
    assert "none: images kept at their own size" in shown.out
    many = [f"{number}.png,{number}" for number in range(3)]
    folder_of(tmp_path / "e", ["0.png", "1.png", "2.png"])
    built(tmp_path / "e", tmp_path / "t", labels_csv=table_of(tmp_path / "l.csv", *many))
    assert "3: 0 (1), 1 (1), 2 (1)" in command("store", "info", tmp_path / "t").out


def test_a_store_of_many_classes_or_with_damage_is_shown_on_few_lines(command: Command, tmp_path: Path) -> None:
    table = pa.table({"image": image_column("binary", IMAGES[:2]), "label": pa.array([0, 99])})
    built(write_table(table, tmp_path / "t.parquet"), tmp_path / "s")
    shown = command("store", "info", tmp_path / "s", "--json")
    assert "100: 0 (1), 1 (0)" in shown.err
    assert "and 80 more" in " ".join(shown.err.replace("│", " ").split())
    assert (len(shown.json["images_per_class"]), sum(shown.json["images_per_class"])) == (100, 2)
    (tmp_path / "s" / "shard-00000.arrow").write_bytes(b"")
    shown = command("store", "info", tmp_path / "s", "--json")
    assert (shown.code, shown.json["rows"], shown.json["images_per_class"]) == (0, 2, None)
    assert "not counted" in shown.err


def test_labels_that_a_file_takes_away_are_counted_and_a_file_of_none_is_refused(
    small_store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A request's table is empty until a person fills it in: by itself it would take the labels of its images away."""
    path = tmp_path / "store"
    shutil.copytree(small_store, path)
    before = ImageStore(path).labels
    empty = [f"class0/{number:03d}.png," for number in range(4)]
    (tmp_path / "labels.csv").write_text("\n".join(["key,label", *empty]))
    with pytest.raises(ConfigError, match=r"labels\.csv has no label: write classes into its column label"):
        store.label(path, tmp_path / "labels.csv")
    assert np.array_equal(ImageStore(path).labels, before)
    (tmp_path / "labels.csv").write_text("\n".join(["key,label", *empty, "class1/000.png,class2"]))
    store.label(path, tmp_path / "labels.csv")
    assert f"leaves 4 labels empty that {path} had: they are taken away" in caplog.text
    assert (ImageStore(path).labels != before).sum() == 5


def test_labels_alone_are_taken_away_by_their_number(small_store: Path, tmp_path: Path) -> None:
    path, file = tmp_path / "store", tmp_path / "labels.csv"
    shutil.copytree(small_store, path)
    file.write_text("key,label\nclass1/003.png,-1\nclass1/004.png,\n")
    store.label(path, file)
    opened = ImageStore(path)
    assert [int((opened.labels == label).sum()) for label in (-1, 0, 1, 2)] == [2, 17, 15, 17]
    keys = store.stored_keys(path, opened.manifest)
    file.write_text("\n".join(["key,label", *(f"{key},-1" for key in keys)]))
    store.label(path, file)
    assert ImageStore(path).labels.tolist() == [-1] * 51
    assert ImageStore(path).class_names == ()
