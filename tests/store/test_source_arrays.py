"""Stores built from STL-10's and CIFAR's files hold their images and labels; damaged files give one clear error."""

from __future__ import annotations

import os
import pickle
import shutil
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from ssl_dist.errors import SourceError
from ssl_dist.store.building.sources import cifar, list_source, pickles
from tests.store.sources import Pixels, assert_holds, built, left_out, png, random_images, shard_of


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


def test_a_folder_of_stl10_asks_which_of_its_files(tmp_path: Path) -> None:
    """A store of all files would contain both the training and the test images."""
    for name in ("test", "train", "unlabeled"):
        (tmp_path / f"{name}_X.bin").write_bytes(bytes(3 * 96 * 96))
    message = r"by '.*/unlabeled_X\.bin', or of some, by '.*/\{train,unlabeled\}_X\.bin'; it has test_X\.bin, train_X"
    with pytest.raises(SourceError, match=message):
        list_source(tmp_path)
    assert list_source(f"{tmp_path}/{{train,unlabeled}}_X.bin").num_images == 2


def test_new_labels_of_stl10_make_another_source(tmp_path: Path) -> None:
    """An unfinished build is only resumed from the same source: otherwise old and new labels would be mixed."""
    (tmp_path / "train_X.bin").write_bytes(bytes(2 * 3 * 96 * 96))
    without = list_source(tmp_path / "train_X.bin").fingerprint
    (tmp_path / "train_y.bin").write_bytes(bytes([1, 2]))
    before = list_source(tmp_path / "train_X.bin").fingerprint
    (tmp_path / "train_y.bin").write_bytes(bytes([2, 1]))
    os.utime(tmp_path / "train_y.bin", ns=(1, 1))
    assert len({without, before, list_source(tmp_path / "train_X.bin").fingerprint}) == 3


def test_the_labels_in_a_folder_of_stl10_are_not_skipped_files(tmp_path: Path) -> None:
    (tmp_path / "train_X.bin").write_bytes(bytes(3 * 96 * 96))
    (tmp_path / "train_y.bin").write_bytes(bytes([1]))
    for name in ("class_names.txt", "other.txt"):
        (tmp_path / name).write_text("airplane")
    assert left_out(list_source(tmp_path)) == ("other.txt",)


def python2_text(text: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(text)) + text


def python2_cifar(images: Pixels, key: bytes, labels: list[int]) -> bytes:
    """Return the bytes that Python 2 and its NumPy wrote for CIFAR's authors, opcode by opcode."""
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
    assert (list_source(tmp_path).num_images, left_out(list_source(tmp_path))) == (10, ())
    (tmp_path / "mine.txt").write_text("notes")
    assert left_out(list_source(tmp_path)) == ("mine.txt",)
    with pytest.raises(SourceError, match="it has the names of CIFAR's classes, but no file of its images"):
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
    assert (one.num_images, one.class_names) == (2, tuple(names))
    os.utime(tmp_path / "meta", ns=(1, 1))
    assert list_source(tmp_path / "test").fingerprint != one.fingerprint
    (tmp_path / "test").unlink()
    assert (list_source(tmp_path).num_images, left_out(list_source(tmp_path))) == (3, ())


def test_the_classes_of_cifar_100_are_the_fine_ones(tmp_path: Path) -> None:
    content = {"coarse_labels": [4, 1], "fine_labels": [49, 33], "data": np.zeros((2, 3072), dtype=np.uint8)}
    (tmp_path / "train").write_bytes(pickle.dumps(content, protocol=2))
    names = {f"{kind}_label_names": [f"{kind} {n}" for n in range(n)] for kind, n in (("coarse", 20), ("fine", 100))}
    (tmp_path / "meta").write_bytes(pickle.dumps(names, protocol=2))
    listed = list_source(tmp_path)
    assert [listed.class_names[member.label] for member in listed.members()] == ["fine 49", "fine 33"]


def test_cifar_as_todays_numpy_would_pickle_it(tmp_path: Path) -> None:
    images = random_images(3, 32)
    data = images.transpose(0, 3, 1, 2).reshape(3, 3072)
    for protocol in (2, 3, 4):
        (tmp_path / "train").write_bytes(pickle.dumps({"data": data, "labels": [1, 2, 0]}, protocol=protocol))
        assert_holds(built(tmp_path / "train", tmp_path / f"s{protocol}"), images, [1, 2, 0])


def test_an_array_that_lies_column_by_column_gives_the_same_images(tmp_path: Path) -> None:
    images = random_images(3, 32)
    data = np.asfortranarray(images.transpose(0, 3, 1, 2).reshape(3, 3072))
    (tmp_path / "train").write_bytes(pickle.dumps({"data": data, "labels": [1, 2, 0]}, protocol=2))
    assert_holds(built(tmp_path / "train", tmp_path / "s"), images, [1, 2, 0])


def test_a_batch_of_30_megabytes_is_read_in_seconds(tmp_path: Path) -> None:
    content = {
        "data": np.zeros((10_000, 3072), dtype=np.uint8),
        "labels": [number % 10 for number in range(10_000)],
        "filenames": [f"{number}.png" for number in range(10_000)],
    }
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(content, protocol=2))
    start = time.process_time()
    assert list_source(tmp_path / "data_batch_1").num_images == 10_000
    assert time.process_time() - start < 10  # 0.3 s on an idle core


def binary_cifar(images: Pixels, *labels: list[int]) -> bytes:
    """Return a binary file: for each image a byte of each list of labels, then its colour planes, row by row."""
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([np.array(labels, dtype=np.uint8).T, planes], axis=1).tobytes()


def test_the_binary_folder_of_cifar_10_as_downloaded(tmp_path: Path) -> None:
    images, names = random_images(12, 32), [f"class{number}" for number in range(10)]
    (tmp_path / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
    (tmp_path / "readme.html").write_text("<html>")
    for number in range(5):
        part = images[2 * number : 2 * number + 2]
        (tmp_path / f"data_batch_{number + 1}.bin").write_bytes(binary_cifar(part, [number, 9]))
    (tmp_path / "test_batch.bin").write_bytes(binary_cifar(images[10:], [5, 6]))
    with pytest.raises(
        SourceError,
        match=r"to train with and to test with: .*/data_batch_\{1\.\.5\}\.bin' and .*/test_batch\.bin', of CIFAR-100",
    ):
        list_source(tmp_path)
    trained = built(f"{tmp_path}/data_batch_{{1..5}}.bin", tmp_path / "stores" / "train", strict=True)
    assert_holds(trained, images[:10], [0, 9, 1, 9, 2, 9, 3, 9, 4, 9])
    assert trained.class_names == tuple(names)
    assert [key for key, _, _ in trained.rows()][:3] == [
        "data_batch_1.bin/0",
        "data_batch_1.bin/1",
        "data_batch_2.bin/0",
    ]
    assert_holds(built(tmp_path / "test_batch.bin", tmp_path / "stores" / "test"), images[10:], [5, 6])
    shutil.rmtree(tmp_path / "stores")
    (tmp_path / "test_batch.bin").unlink()
    assert (list_source(tmp_path).num_images, left_out(list_source(tmp_path))) == (10, ())
    (tmp_path / "batches.meta.txt").unlink()
    assert list_source(tmp_path).class_names == tuple("0123456789")


def test_the_binary_folder_of_cifar_100_as_downloaded(tmp_path: Path) -> None:
    images, names = random_images(3, 32), [f"class{number}" for number in range(100)]
    (tmp_path / "fine_label_names.txt").write_text("\n".join(names) + "\n")
    (tmp_path / "coarse_label_names.txt").write_text("\n".join(names[:20]) + "\n")
    (tmp_path / "train.bin").write_bytes(binary_cifar(images, [19, 0, 1], [0, 99, 50]))
    (tmp_path / "test.bin").write_bytes(binary_cifar(images[:1], [3], [7]))
    with pytest.raises(SourceError, match=r"of CIFAR-100 by '.*/train\.bin' and '.*/test\.bin'"):
        list_source(tmp_path)
    one = list_source(tmp_path / "train.bin")
    os.utime(tmp_path / "fine_label_names.txt", ns=(1, 1))
    assert list_source(tmp_path / "train.bin").fingerprint != one.fingerprint
    (tmp_path / "test.bin").unlink()
    assert left_out(list_source(tmp_path)) == ()
    opened = built(tmp_path / "train.bin", tmp_path / "s")
    assert_holds(opened, images, [0, 99, 50])
    assert opened.class_names == tuple(names)


def test_the_binary_and_the_pickled_form_give_the_same_images(tmp_path: Path) -> None:
    images = random_images(3, 32)
    (tmp_path / "data_batch_1").write_bytes(python2_cifar(images, b"labels", [1, 2, 9]))
    (tmp_path / "data_batch_1.bin").write_bytes(binary_cifar(images, [1, 2, 9]))
    pickled, binary = (list(list_source(tmp_path / f"data_batch_1{end}").members()) for end in ("", ".bin"))
    assert [(member.label, member.content.tobytes()) for member in binary] == [  # type: ignore[union-attr]
        (member.label, member.content.tobytes())  # type: ignore[union-attr]
        for member in pickled
    ]
    with pytest.raises(SourceError, match="files of several kinds"):
        list_source(tmp_path)  # it would have every image twice
    (tmp_path / "train.bin").write_bytes(binary_cifar(images, [1, 2, 9], [1, 2, 9]))
    with pytest.raises(SourceError, match="files of CIFAR-10 and of CIFAR-100"):
        list_source(f"{tmp_path}/{{data_batch_1,train}}.bin")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data_batch_1.bin", bytes(3073 + 3072), "has 6145 bytes: CIFAR-10's images take 3073 each"),
        ("train.bin", bytes(3073), "has 3073 bytes: CIFAR-100's images take 3074 each"),
        ("test.bin", bytes(3074 - 1), "has 3073 bytes: CIFAR-100's images take 3074 each"),
        ("test_batch.bin", b"", "has 0 bytes"),
        ("train.bin", b"", "has 0 bytes"),
        ("data_batch_2.bin", bytes(3073) + b"\x0a" + bytes(3072), "has a label 10, and there are 10 classes"),
        ("train.bin", bytes(3074) + b"\x01\x64" + bytes(3072), "has a label 100, and there are 100 classes"),
        ("train.bin", bytes(3074) + b"\x14\x00" + bytes(3072), "has a coarse label 20, and the largest is 19"),
    ],
)
def test_a_damaged_binary_file_of_cifar_is_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=rf"{name} {message}"):
        list_source(tmp_path / name)


def test_a_file_that_is_only_called_like_one_of_cifars_is_no_second_kind(tmp_path: Path) -> None:
    shard_of(tmp_path / "a.tar", {"a.png": png(random_images(1, 32)[0])})
    for content in (b"", bytes(3072)):
        (tmp_path / "train.bin").write_bytes(content)
        listed = list_source(tmp_path)
        assert (listed.num_images, left_out(listed)) == (1, ("train.bin",))
    (tmp_path / "test.bin").write_bytes(bytes(3074))
    with pytest.raises(SourceError, match="files of several kinds"):
        list_source(tmp_path)


_DEEP = b"\x80\x02}(" + b")" + 200_000 * b"\x85" + b"K\x01u."  # a tuple in a tuple in ..., as a key
_DOUBLED = b"\x80\x02}(" + b")" + b"".join(b"q\x00h\x00\x86" for _ in range(60)) + b"K\x01u."
_AGAIN_AND_AGAIN = b"\x80\x02](c_codecs\nencode\nq\x00X\xe8\x03\x00\x00" + 1000 * b"x" + b"q\x01"
_AGAIN_AND_AGAIN += 1000 * b"h\x00h\x01U\x06latin1\x86R" + b"e."
_BLACK = np.zeros((1, 32, 32, 3), dtype=np.uint8)
_NOT_LATIN_1 = python2_cifar(_BLACK, b"labels", [1]).replace(
    python2_text(bytes(3072)), b"X" + struct.pack("<i", 3 * 3072) + 3072 * "☃".encode()
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_DEEP, "a dictionary with keys that are not texts"),
        (_DOUBLED, "a dictionary with keys that are not texts"),
        (b"\x80\x02}(" + b")" + 100 * b"2\x86" + b"K\x01u.", "it has the operation DUP"),
        (b"\x80\x02}r" + struct.pack("<I", 60_000_000) + b".", "has no uint8"),
        (_AGAIN_AND_AGAIN, "it has no dictionary"),
        (b"\x80\x02}(U\x04data\x8a\x10" + 16 * b"\x7f" + b"u.", "has no uint8"),
        (b"\x80\x02}(U\x04dataU\x01xU\x01x\x86Ru.", "it calls something that is no function"),
        (b"\x80\x02}}bu.", "puts something into a value that cannot hold it"),
        (b"\x80\x02}U\x01xe.", "not a file of CIFAR"),
        (b"\x80\x02\x86.", "takes more values than it has"),
        (b"\x80\x02c" + 9999 * b"x" + b"\nx\n.", r"it asks for x{100,200}\)$"),
        (b"\x80\x02Qx.", "it has the operation BINPERSID"),
        (_NOT_LATIN_1, "has no uint8"),
    ],
)
def test_a_hostile_pickle_does_not_crash_or_fill_the_memory(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(SourceError, match=message):
        list_source(tmp_path / "data_batch_1")


def test_a_pickle_of_too_many_bytes_or_operations_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data_batch_1").write_bytes(b"\x80\x02" + 100 * b"]" + b".")
    monkeypatch.setattr(pickles, "_MAX_OPERATIONS", 50)
    with pytest.raises(SourceError, match="more than 50 operations"):
        list_source(tmp_path / "data_batch_1")
    monkeypatch.setattr(cifar, "_MAX_BYTES", 99)
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
        (b"\x80\x02}", "not a file of CIFAR"),
        (b"\x80\x05\x95\xff\xff\xff\xff\xff\xff\xff\x7f", "not a file of CIFAR"),
        (python2_cifar(random_images(2, 32), b"labels", [1]), "no whole number for each of its 2 images"),
        (python2_cifar(random_images(2, 32), b"labels", [1, 10]), "has a label 10, and there are 10 classes"),
        (python2_cifar(random_images(2, 32), b"labels", [1, 2])[:-200], "not a file of CIFAR"),
    ],
)
def test_a_hostile_pickle_runs_nothing(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(SourceError, match=message):
        list_source(tmp_path / "data_batch_1")
