"""What stores are built from: each kind gives the images and labels that were put in, or one error that says why."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import tarfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import fs, parquet

from ssl_dist import store
from ssl_dist.errors import SourceError
from ssl_dist.store import ImageStore
from ssl_dist.store.sources import list_source, pickles
from ssl_dist.store.sources.files import expand

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


# --- STL-10 and CIFAR


def test_stl10s_columns_are_turned_into_rows(tmp_path: Path) -> None:
    images = random_images(5, 96)
    (tmp_path / "train_X.bin").write_bytes(images.transpose(0, 3, 2, 1).tobytes())
    (tmp_path / "train_y.bin").write_bytes(bytes([3, 1, 10, 2, 2]))
    opened = built(tmp_path / "train_X.bin", tmp_path / "s")
    assert_holds(opened, images, [2, 0, 9, 1, 1])
    assert opened.class_names[0] == "airplane"
    (tmp_path / "unlabeled_X.bin").write_bytes(images.transpose(0, 3, 2, 1).tobytes())
    unlabelled = built(tmp_path / "unlabeled_X.bin", tmp_path / "u")
    assert unlabelled.class_names == ()
    both = built(f"{tmp_path}/{{train,unlabeled}}_X.bin", tmp_path / "b")
    assert_holds(both, np.concatenate([images, images]), [2, 0, 9, 1, 1] + 5 * [-1])
    assert built(tmp_path / "train_X.bin", tmp_path / "small", size_px=32).image_shape == (32, 32, 3)


def test_stl10_files_that_are_cut_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train_X.bin").write_bytes(bytes(3 * 96 * 96 + 1))
    with pytest.raises(SourceError, match="has 27649 bytes: STL-10's images take 27648 each"):
        list_source(tmp_path / "train_X.bin")
    (tmp_path / "train_X.bin").write_bytes(bytes(3 * 96 * 96))
    for labels, message in (
        (bytes([1, 2]), "has 1 images, and the file of labels beside it 2"),
        (bytes([11]), "1 to 10"),
    ):
        (tmp_path / "train_y.bin").write_bytes(labels)
        with pytest.raises(SourceError, match=message):
            list_source(tmp_path / "train_X.bin")


def test_new_labels_of_stl10_make_another_source(tmp_path: Path) -> None:
    """An unfinished build goes on with the same source alone: its labels would be old and new ones."""
    (tmp_path / "train_X.bin").write_bytes(bytes(2 * 3 * 96 * 96))
    without = list_source(tmp_path / "train_X.bin").fingerprint
    (tmp_path / "train_y.bin").write_bytes(bytes([1, 2]))
    before = list_source(tmp_path / "train_X.bin").fingerprint
    (tmp_path / "train_y.bin").write_bytes(bytes([2, 1]))
    os.utime(tmp_path / "train_y.bin", ns=(1, 1))
    assert len({without, before, list_source(tmp_path / "train_X.bin").fingerprint}) == 3


def test_the_labels_in_a_folder_of_stl10_are_not_foreign(tmp_path: Path) -> None:
    (tmp_path / "train_X.bin").write_bytes(bytes(3 * 96 * 96))
    (tmp_path / "train_y.bin").write_bytes(bytes([1]))
    for name in ("class_names.txt", "other.txt"):
        (tmp_path / name).write_text("airplane")
    assert list_source(tmp_path).foreign == ("other.txt",)


def python2_text(text: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(text)) + text


def python2_cifar(images: Pixels, key: bytes, labels: list[int]) -> bytes:
    """The bytes that Python 2 and its NumPy wrote for CIFAR's authors, opcode by opcode."""
    data = images.transpose(0, 3, 1, 2).reshape(len(images), -1).tobytes()
    shape = b"K" + bytes([len(images)]) + b"M" + struct.pack("<H", 3072) + b"\x86"
    kind = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01" + shape + kind + b"\x89"
    array += python2_text(data) + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + python2_text(b"data") + array + python2_text(key) + numbers + b"u."


def python2_names(key: bytes, names: list[str]) -> bytes:
    listed = b"](" + b"".join(python2_text(name.encode()) for name in names) + b"e"
    return b"\x80\x02}(" + python2_text(key) + listed + b"u."


def test_cifars_python_files_of_ten_and_of_a_hundred(tmp_path: Path) -> None:
    images, labels = random_images(6, 32), [3, 0, 9, 9, 1, 2]
    (tmp_path / "data_batch_1").write_bytes(python2_cifar(images[:4], b"labels", labels[:4]))
    (tmp_path / "data_batch_2").write_bytes(python2_cifar(images[4:], b"labels", labels[4:]))
    opened = built(f"{tmp_path}/data_batch_{{1..2}}", tmp_path / "s")
    assert_holds(opened, images, labels)
    assert opened.class_names == tuple("0123456789")
    names = [f"class {number}" for number in range(10)]
    (tmp_path / "batches.meta").write_bytes(python2_names(b"label_names", names))
    assert built(f"{tmp_path}/data_batch_*", tmp_path / "t").class_names == tuple(names)
    (tmp_path / "train").write_bytes(python2_cifar(images, b"fine_labels", [*labels[:5], 99]))
    hundred = built(tmp_path / "train", tmp_path / "h")
    assert (len(hundred.class_names), hundred.labels.max()) == (100, 99)
    with pytest.raises(SourceError, match="files of CIFAR-10 and of CIFAR-100"):
        list_source(f"{tmp_path}/{{data_batch_1,train}}")


def test_the_folder_of_cifar_10_as_downloaded(tmp_path: Path) -> None:
    images, names = random_images(12, 32), [f"class {number}" for number in range(10)]
    (tmp_path / "batches.meta").write_bytes(python2_names(b"label_names", names))
    (tmp_path / "readme.html").write_text("<html>")
    for number in range(5):
        part = images[2 * number : 2 * number + 2]
        (tmp_path / f"data_batch_{number + 1}").write_bytes(python2_cifar(part, b"labels", [number, 9]))
    (tmp_path / "test_batch").write_bytes(python2_cifar(images[10:], b"labels", [5, 6]))
    with pytest.raises(
        SourceError, match=r"to train with and to test with: .*/data_batch_\{1\.\.5\}' and .*/test_batch'"
    ):
        list_source(tmp_path)
    trained = built(f"{tmp_path}/data_batch_{{1..5}}", tmp_path / "stores" / "train", strict=True)
    assert_holds(trained, images[:10], [0, 9, 1, 9, 2, 9, 3, 9, 4, 9])
    assert trained.class_names == tuple(names)
    shutil.rmtree(tmp_path / "stores")
    (tmp_path / "test_batch").unlink()
    assert (list_source(tmp_path).total, list_source(tmp_path).foreign) == (10, ())
    (tmp_path / "mine.txt").write_text("notes")
    assert list_source(tmp_path).foreign == ("mine.txt",)
    with pytest.raises(SourceError, match="the names of CIFAR's classes, and no file of its images"):
        list_source(tmp_path / "batches.meta")


def test_the_folder_of_cifar_100_as_downloaded(tmp_path: Path) -> None:
    images, names = random_images(3, 32), [f"class {number}" for number in range(100)]
    (tmp_path / "meta").write_bytes(python2_names(b"fine_label_names", names))
    (tmp_path / "file.txt~").write_text("")
    (tmp_path / "train").write_bytes(python2_cifar(images, b"fine_labels", [0, 1, 99]))
    (tmp_path / "test").write_bytes(python2_cifar(images[:2], b"fine_labels", [2, 3]))
    with pytest.raises(SourceError, match=r"of CIFAR-100 by '.*/train' and '.*/test'"):
        list_source(tmp_path)
    one = list_source(tmp_path / "test")
    assert (one.total, one.class_names) == (2, tuple(names))
    os.utime(tmp_path / "meta", ns=(1, 1))
    assert list_source(tmp_path / "test").fingerprint != one.fingerprint
    (tmp_path / "test").unlink()
    assert (list_source(tmp_path).total, list_source(tmp_path).foreign) == (3, ())


def test_cifar_as_todays_numpy_would_pickle_it(tmp_path: Path) -> None:
    import pickle

    images = random_images(3, 32)
    data = images.transpose(0, 3, 1, 2).reshape(3, 3072)
    for protocol in (2, 3, 4):
        (tmp_path / "train").write_bytes(pickle.dumps({"data": data, "labels": [1, 2, 0]}, protocol=protocol))
        assert_holds(built(tmp_path / "train", tmp_path / f"s{protocol}"), images, [1, 2, 0])


def test_an_array_that_lies_column_by_column_gives_the_same_images(tmp_path: Path) -> None:
    import pickle

    images = random_images(3, 32)
    data = np.asfortranarray(images.transpose(0, 3, 1, 2).reshape(3, 3072))
    (tmp_path / "train").write_bytes(pickle.dumps({"data": data, "labels": [1, 2, 0]}, protocol=2))
    assert_holds(built(tmp_path / "train", tmp_path / "s"), images, [1, 2, 0])


def test_a_batch_of_30_megabytes_is_read_in_seconds(tmp_path: Path) -> None:
    import pickle

    content = {
        "data": np.zeros((10_000, 3072), dtype=np.uint8),
        "labels": [number % 10 for number in range(10_000)],
        "filenames": [f"{number}.png" for number in range(10_000)],
    }
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(content, protocol=2))
    start = time.process_time()
    assert list_source(tmp_path / "data_batch_1").total == 10_000
    assert time.process_time() - start < 10  # 0.3 s on an idle core


_DEEP = b"\x80\x02}(" + b")" + 200_000 * b"\x85" + b"K\x01u."  # a tuple in a tuple in ..., as a key
_DOUBLED = b"\x80\x02}(" + b")" + b"".join(b"q\x00h\x00\x86" for _ in range(60)) + b"K\x01u."
_AGAIN_AND_AGAIN = b"\x80\x02](c_codecs\nencode\nq\x00X\xe8\x03\x00\x00" + 1000 * b"x" + b"q\x01"
_AGAIN_AND_AGAIN += 1000 * b"h\x00h\x01U\x06latin1\x86R" + b"e."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_DEEP, "a dictionary with keys that are no text"),
        (_DOUBLED, "a dictionary with keys that are no text"),
        (b"\x80\x02}(" + b")" + 100 * b"2\x86" + b"K\x01u.", "it has the operation DUP"),
        (b"\x80\x02}r" + struct.pack("<I", 60_000_000) + b".", "has no uint8"),
        (_AGAIN_AND_AGAIN, "it makes more bytes than it has"),
        (b"\x80\x02}(U\x04data\x8a\x10" + 16 * b"\x7f" + b"u.", "a whole number of more than 64 bits"),
        (b"\x80\x02}(U\x04dataU\x01xU\x01x\x86Ru.", "it calls what is no array's"),
        (b"\x80\x02}}bu.", "puts something into what is no array"),
        (b"\x80\x02}U\x01xe.", "not a file of CIFAR's"),
        (b"\x80\x02\x86.", "takes more values than it has"),
        (b"\x80\x02c" + 9999 * b"x" + b"\nx\n.", r"it asks for x{100,200}\)$"),
        (b"\x80\x02Qx.", "it has the operation BINPERSID"),
    ],
)
def test_a_pickle_takes_neither_the_process_nor_its_memory(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(SourceError, match=message):
        list_source(tmp_path / "data_batch_1")


def test_a_pickle_of_too_many_bytes_or_operations_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data_batch_1").write_bytes(b"\x80\x02" + 100 * b"]" + b".")
    monkeypatch.setattr(pickles, "_MOST_STEPS", 50)
    with pytest.raises(SourceError, match="more than 50 operations"):
        list_source(tmp_path / "data_batch_1")
    monkeypatch.setattr(pickles, "MOST_BYTES", 99)
    with pytest.raises(SourceError, match="has more than 99 bytes"):
        list_source(tmp_path / "data_batch_1")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02cos\nsystem\n(U\x0etouch /tmp/xxxtR.", "it asks for os.system"),
        (b"\x80\x02cnumpy.lib.npyio\nload\n(U\x01xtR.", "it asks for numpy.lib.npyio.load"),
        (b"\x80\x02cbuiltins\neval\n(U\x0311tR.", "it asks for builtins.eval"),
        (b"\x80\x02](K\x01e.", "it has no dictionary"),
        (b"\x80\x02}(U\x04dataK\x01u.", "has no uint8"),
        (b"\x80\x02}", "not a file of CIFAR's"),
        (b"\x80\x05\x95\xff\xff\xff\xff\xff\xff\xff\x7f", "not a file of CIFAR's"),
        (python2_cifar(random_images(2, 32), b"labels", [1]), "no whole number for each of its 2 images"),
        (python2_cifar(random_images(2, 32), b"labels", [1, 10]), "has a label 10, and there are 10 classes"),
        (python2_cifar(random_images(2, 32), b"labels", [1, 2])[:-200], "not a file of CIFAR's"),
    ],
)
def test_a_hostile_pickle_runs_nothing(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(SourceError, match=message):
        list_source(tmp_path / "data_batch_1")


# --- Parquet and Arrow


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


@pytest.mark.parametrize("kind", ["struct", "binary", "large"])
@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".stream"])
def test_tables_of_encoded_images(kind: str, suffix: str, tmp_path: Path) -> None:
    images, labels = random_images(7, 16), [1, 0, None, 2, 2, 1, 0]
    table = pa.table(
        {"id": pa.array(range(7)), "image": image_column(kind, images), "label": pa.array(labels, pa.int64())}
    )
    features = {"label": {"names": ["ant", "bee", "cat"], "_type": "ClassLabel"}}
    named = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    known = [-1 if label is None else label for label in labels]
    opened = built(write_table(named, tmp_path / f"a{suffix}"), tmp_path / "named")
    assert_holds(opened, images, known)
    assert opened.class_names == ("ant", "bee", "cat")
    assert built(write_table(table, tmp_path / f"b{suffix}"), tmp_path / "numbered").class_names == ("0", "1", "2")
    without = built(write_table(table.drop(["label"]), tmp_path / f"c{suffix}"), tmp_path / "without")
    assert_holds(without, images, [-1] * 7)


def test_a_folder_of_tables_and_rows_that_hold_no_image(tmp_path: Path) -> None:
    images = random_images(4, 16)
    encoded = [png(images[0]), None, b"no image", png(images[1])]
    (tmp_path / "d").mkdir()
    for number, name in enumerate(("b", "a")):
        table = pa.table({"jpg": pa.array(encoded, pa.binary()), "cls": pa.array([number] * 4)})
        write_table(table, tmp_path / "d" / f"{name}.parquet")
    (tmp_path / "d" / "dataset_info.json").write_text("{}")
    opened = built(tmp_path / "d", tmp_path / "s")
    assert_holds(opened, images[[0, 1, 0, 1]], [1, 1, 0, 0])
    assert opened.manifest.skipped == 5, "with dataset_info.json"
    with pytest.raises(SourceError, match=r"a\.parquet/1"):
        store.build(f"{tmp_path}/d/*.parquet", tmp_path / "t", workers=1, strict=True)


def test_tables_that_will_not_do_are_refused(tmp_path: Path) -> None:
    images = image_column("binary", random_images(2, 16))
    two = write_table(pa.table({"a": images, "b": images}), tmp_path / "two.parquet")
    with pytest.raises(SourceError, match="has no one column of images among a, b"):
        list_source(two)
    with pytest.raises(SourceError, match="has no one column of images among text"):
        list_source(write_table(pa.table({"text": ["x"]}), tmp_path / "text.parquet"))
    write_table(pa.table({"image": images, "label": [0, 1]}), tmp_path / "one.parquet")
    write_table(pa.table({"image": images}), tmp_path / "other.parquet")
    with pytest.raises(SourceError, match="its files differ in their columns"):
        list_source(f"{tmp_path}/{{one,other}}.parquet")
    for suffix in (".parquet", ".arrow", ".stream"):
        whole = write_table(pa.table({"image": images}), tmp_path / f"cut{suffix}").read_bytes()
        (tmp_path / f"cut{suffix}").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(SourceError, match="is not a whole Parquet or Arrow file"):
            built(tmp_path / f"cut{suffix}", tmp_path / f"s{suffix}")


def test_tables_whose_columns_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    images = image_column("binary", random_images(2, 16))
    for suffix in (".parquet", ".arrow", ".stream"):
        twins = pa.Table.from_arrays([images, images], ["image", "image"])
        with pytest.raises(SourceError, match="has several columns of the name image"):
            list_source(write_table(twins, tmp_path / f"twins{suffix}"))
        nested = pa.array([{"bytes": {"bytes": b""}}], pa.struct([("bytes", pa.struct([("bytes", pa.binary())]))]))
        with pytest.raises(SourceError, match="has no one column of images among image"):
            list_source(write_table(pa.table({"image": nested}), tmp_path / f"nested{suffix}"))


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".stream"])
def test_a_label_that_would_make_millions_of_classes_is_refused(suffix: str, tmp_path: Path) -> None:
    table = pa.table({"image": image_column("binary", random_images(2, 16)), "label": [0, 1_000_000]})
    with pytest.raises(SourceError, match="has a label 1000000: number the classes from 0, below 1,000,000"):
        list_source(write_table(table, tmp_path / f"a{suffix}"))


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".stream"])
@pytest.mark.parametrize("labelled", [False, True])
def test_listing_a_table_reads_no_image(suffix: str, labelled: bool, tmp_path: Path) -> None:
    """A few kilobytes may hold gigabytes of equal images."""
    columns: dict[str, Any] = {"image": pa.array([bytes(1 << 20)] * 64, pa.binary())}
    if labelled:
        columns["label"] = [1] * 64
    path, table = tmp_path / f"a{suffix}", pa.table(columns)
    if suffix == ".parquet":
        parquet.write_table(table, path, compression="zstd")
    else:
        new = pa.ipc.new_file if suffix == ".arrow" else pa.ipc.new_stream
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with path.open("wb") as file, new(file, table.schema, options=options) as writer:
            writer.write_table(table)
    del table, columns
    before = pa.default_memory_pool().total_bytes_allocated()
    listed = list_source(path)
    assert pa.default_memory_pool().total_bytes_allocated() - before < 16 << 20
    assert (listed.total, listed.class_names) == (64, ("0", "1") if labelled else ())


# --- WebDataset, patterns, places


def shard_of(path: Path, samples: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in samples.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_webdataset_shards_by_braces(tmp_path: Path) -> None:
    images, labels = random_images(6, 16), [4, 0, 2, 2, 1, 3]
    for shard in range(3):
        samples = {}
        for number in (2 * shard, 2 * shard + 1):  # a class may stand before or after its image
            parts = {f"{number:04d}.cls": f"{labels[number]}\n".encode(), f"{number:04d}.seg.png": png(images[number])}
            samples |= dict(reversed(parts.items()) if shard == 1 else parts.items())
            samples[f"{number:04d}.json"] = b"{}"
        shard_of(tmp_path / f"a-{shard:03d}.tar", samples)
    opened = built(f"{tmp_path}/a-{{000..002}}.tar", tmp_path / "s")
    assert_holds(opened, images, labels)
    assert opened.class_names == tuple("01234")
    assert opened.manifest.skipped == 0
    assert_holds(built(f"{tmp_path}/a-{{002,000}}.tar", tmp_path / "t"), images[[4, 5, 0, 1]], [1, 3, 4, 0])
    with pytest.raises(SourceError, match=r"a-003\.tar: no such file \(of .*a-\{000\.\.003\}\.tar\)"):
        list_source(f"{tmp_path}/a-{{000..003}}.tar")
    shard_of(tmp_path / "bad.tar", {"0.png": png(images[0]), "0.cls": b"dog"})
    with pytest.raises(SourceError, match=r"0\.cls is not the number of a class"):
        list_source(tmp_path / "bad.tar")


@pytest.mark.parametrize("digits", [b"1000000", b"999999999"])
def test_a_cls_that_would_make_millions_of_classes_is_refused(digits: bytes, tmp_path: Path) -> None:
    tar = shard_of(tmp_path / "a.tar", {"0.png": png(random_images(1, 16)[0]), "0.cls": digits})
    with pytest.raises(SourceError, match=rf"0\.cls says class {digits.decode()}: number the classes from 0"):
        list_source(tar)


def test_a_tar_cut_after_the_header_of_a_class_is_refused(tmp_path: Path) -> None:
    whole = shard_of(tmp_path / "a.tar", {"0.png": b"", "0.cls": b"1"}).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: 2 * tarfile.BLOCKSIZE])
    with pytest.raises(SourceError, match="is not a whole tar file"):
        list_source(tmp_path / "a.tar")


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_tar_of_headers_upon_headers_is_refused(kind: bytes, tmp_path: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type = kind
    (tmp_path / "a.tar").write_bytes(2000 * header.tobuf(tarfile.GNU_FORMAT) + bytes(2 * tarfile.BLOCKSIZE))
    with pytest.raises(SourceError, match="is not a whole tar file"):
        list_source(tmp_path / "a.tar")


def test_a_tar_with_a_header_of_megabytes_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", pax_headers={"comment": (2 << 20) * "x"}):
        pass
    with pytest.raises(SourceError, match=r"is not a whole tar file \(a header of 2,097,\d+ bytes\)"):
        list_source(tmp_path / "a.tar.gz")


def test_a_sparse_file_in_a_tar_is_refused(tmp_path: Path) -> None:
    """A kilobyte stands for any number of bytes."""
    info = tarfile.TarInfo("a.png")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"17777777777\0"  # the real size
    header[148:156] = bytes(8 * b" ")
    header[148:156] = b"%06o\0 " % sum(header[:512])
    (tmp_path / "a.tar").write_bytes(header + bytes(2 * tarfile.BLOCKSIZE))
    with pytest.raises(SourceError, match=r"a\.png is packed as a sparse file"):
        list_source(tmp_path / "a.tar")


def test_files_too_large_for_an_image_are_left_out_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small, large = png(np.zeros((16, 16, 3), dtype=np.uint8)), png(random_images(1, 16)[0])
    for module in ("decode", "sources.images"):
        monkeypatch.setattr(f"ssl_dist.store.{module}.MAX_BYTES", len(large) - 1)
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
        assert f"skipped {name}: a file of more than {len(large) - 1:,} bytes" in caplog.text


def test_patterns(tmp_path: Path) -> None:
    for name in ("a/x/1.png", "a/y/2.png", "a/y/z/3.png", "b/x/4.jpg", "b/[k]/5.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")

    def keys(pattern: str) -> list[str]:
        return [Path(file.path).stem for file in expand(f"{tmp_path}/{pattern}")]

    assert keys("**/*.png") == ["1", "2", "3", "5"]
    assert keys("a/*/*.png") == ["1", "2"]
    assert keys("*/x/?.*") == ["1", "4"]
    assert keys("a/[!x]/*.png") == ["2"]
    assert keys("{b,a}/x/*") == ["4", "1"]
    assert keys("a/{x/1,y/2}.png") == ["1", "2"]
    assert [file.key for file in expand(f"{tmp_path}/a/**/*.png")] == ["x/1.png", "y/2.png", "y/z/3.png"]
    assert keys("a") == ["1", "2", "3"]
    for pattern in ("c/*", "a/*.png", "{5..3}.png"):
        with pytest.raises(SourceError, match=r"no such file|goes from the smaller to the larger"):
            keys(pattern)
    with pytest.raises(SourceError, match=r"\[z-a\]\*\.png is not a pattern \(bad character range z-a"):
        keys("[z-a]*.png")


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
    with pytest.raises(SourceError, match=r"no image file .* and no tar, Parquet or Arrow file, STL-10's or CIFAR's"):
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
    assert "skipped b.txt: not an image file" in caplog.text
    with pytest.raises(SourceError, match=r"b\.txt: not an image file \(--strict"):
        store.build(folder, tmp_path / "t", workers=1, strict=True)
    with pytest.raises(SourceError, match=r"several kinds \(table, and .*b\.txt is something else\): narrow"):
        list_source(f"{folder}/*")


@pytest.mark.parametrize("beside", ["a.png", "a.parquet"])
def test_pipes_are_not_opened(beside: str, tmp_path: Path) -> None:
    write_table(pa.table({"image": image_column("binary", random_images(1, 16))}), tmp_path / "a.parquet")
    if beside == "a.png":
        (tmp_path / "a.parquet").replace(tmp_path / "a.png")
    for name in ("b.png", "b.parquet", "b_X.bin"):
        os.mkfifo(tmp_path / name)
    listed = list_source(tmp_path)
    assert (listed.total, sorted(listed.foreign)) == (1, ["b.parquet", "b.png", "b_X.bin"])


def test_class_folders_whose_names_are_no_text(tmp_path: Path) -> None:
    """The store's manifest is text."""
    for name in (b"a", b"\xff"):
        folder = os.fsencode(tmp_path) + b"/d/" + name
        os.makedirs(folder)
        with open(folder + b"/0.png", "wb") as file:
            file.write(png(random_images(1, 16)[0]))
    opened = built(tmp_path / "d", tmp_path / "s")
    assert (opened.class_names, opened.labels.tolist()) == (("a", "?"), [0, 1])
    os.rename(os.fsencode(tmp_path) + b"/d/a", os.fsencode(tmp_path) + b"/d/\xfe")
    with pytest.raises(SourceError, match="would be one class: rename them"):
        list_source(tmp_path / "d")
