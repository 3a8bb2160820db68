"""Pixels as their authors packed them: STL-10's binary files, CIFAR's Python files.

Sources: https://cs.stanford.edu/~acoates/stl10/ (colour planes one after the other, each column by column);
https://www.cs.toronto.edu/~kriz/cifar.html (colour planes one after the other, each row by row).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from ssl_dist.errors import SourceError
from ssl_dist.store.building.sources import pickles
from ssl_dist.store.building.sources.base import Member, Source, text
from ssl_dist.store.building.sources.files import File, fingerprint, neighbour, reading
from ssl_dist.store.schema import NO_LABEL

_STL_PX, _CIFAR_PX = 96, 32
_STL_BYTES, _CIFAR_BYTES = 3 * _STL_PX**2, 3 * _CIFAR_PX**2
STL_SUFFIX = "_X.bin"
_STL_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
_AT_ONCE = 256  # images read


class _Names(NamedTuple):
    file: str
    key: str
    num_classes: int


_META = {"labels": _Names("batches.meta", "label_names", 10), "fine_labels": _Names("meta", "fine_label_names", 100)}
_CIFAR_NAMES, _CIFAR_TESTS = {names.file for names in _META.values()}, {"test_batch", "test"}
# endings of what their authors packed beside the images
STL_OTHERS, CIFAR_OTHERS = ("_y.bin", "/class_names.txt", "/fold_indices.txt"), ("/readme.html", "/file.txt~")


def of_stl10(name: str, files: Sequence[File]) -> Source:
    """``train_X.bin``, ``test_X.bin``, ``unlabeled_X.bin``; labels are those of the ``_y.bin`` beside it, if any.

    Raises:
        SourceError: a file of another length than its images have, labels of another number, or a folder with several
            of them.
    """
    if Path(name).is_dir() and len(files) > 1:
        names = ", ".join(file.key for file in files)
        raise SourceError(
            f"{name} has several files of images, to train with and to test with: build a store of one, by"
            f" '{name}/{files[-1].key}', or of some, by '{name}/{{train,unlabeled}}{STL_SUFFIX}'; it has {names}"
        )
    beside = [neighbour(file, PurePosixPath(file.path).name.removesuffix(STL_SUFFIX) + "_y.bin") for file in files]
    parts = [
        _Stl10(file, _length(file), known and _stl_labels(known)) for file, known in zip(files, beside, strict=True)
    ]
    for file, count, labels in parts:
        if labels is not None and len(labels) != count:
            raise SourceError(f"{file.path} has {count} images, and the file of labels beside it {len(labels)}")

    def members() -> Iterator[Member]:
        for file, count, labels in parts:
            with reading(file, "file of STL-10's") as content:
                for first in range(0, count, _AT_ONCE):
                    rows = min(_AT_ONCE, count - first)
                    packed = np.frombuffer(content.read(rows * _STL_BYTES), dtype=np.uint8)
                    images = packed.reshape(rows, 3, _STL_PX, _STL_PX).transpose(0, 3, 2, 1)
                    for number, image in enumerate(images, first):
                        label = NO_LABEL if labels is None else int(labels[number])
                        yield Member(f"{file.key}/{number}", label, np.ascontiguousarray(image))

    known = any(labels is not None for _, _, labels in parts)
    total = sum(count for _, count, _ in parts)
    return Source(name, total, (), _STL_CLASSES if known else (), fingerprint([*files, *filter(None, beside)]), members)


class _Stl10(NamedTuple):
    file: File
    num_images: int
    labels: np.ndarray | None


def _length(file: File) -> int:
    with reading(file, "file of STL-10's") as content:
        size = content.seek(0, 2)
    if size == 0 or size % _STL_BYTES:
        raise SourceError(f"{file.path} has {size} bytes: STL-10's images take {_STL_BYTES} each")
    return size // _STL_BYTES


def _stl_labels(file: File) -> np.ndarray:
    """[n], from 0."""
    with reading(file, "file of STL-10's labels"):
        labels = np.frombuffer(file.read(), dtype=np.uint8).astype(np.int64) - 1
    if len(labels) and not (labels.min() >= 0 and labels.max() < len(_STL_CLASSES)):
        raise SourceError(f"{file.path} has labels that are not 1 to {len(_STL_CLASSES)}")
    return labels


def of_cifar(name: str, files: Sequence[File]) -> Source:
    """``data_batch_1`` to ``_5`` and ``test_batch`` of CIFAR-10, ``train`` and ``test`` of CIFAR-100 (its fine labels).

    Raises:
        SourceError: not such a file, or a folder whose images are to train with and to test with.
    """
    files = [file for file in files if _base_name(file) not in _CIFAR_NAMES]
    if not files:
        raise SourceError(f"{name}: the names of CIFAR's classes, and no file of its images")
    tests = [file for file in files if _base_name(file) in _CIFAR_TESTS]
    if Path(name).is_dir() and 0 < len(tests) < len(files):
        raise SourceError(
            f"{name} has images to train with and to test with: build a store of each, of CIFAR-10 by"
            f" '{name}/data_batch_{{1..5}}' and '{name}/test_batch', of CIFAR-100 by '{name}/train' and '{name}/test'"
        )
    total, largest, kinds = 0, 0, set[str]()
    for file in files:
        images, labels, kind = _cifar(file)
        total, largest, kinds = total + len(images), max(largest, *labels), kinds | {kind}
    if len(kinds) > 1:
        raise SourceError(f"{name}: files of CIFAR-10 and of CIFAR-100: build a store of each")
    [kind] = kinds
    meta = neighbour(files[0], _META[kind].file)
    names = _cifar_names(meta, kind)

    def members() -> Iterator[Member]:
        for file in files:
            images, labels, _ = _cifar(file)
            for number, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield Member(f"{file.key}/{number}", label, np.ascontiguousarray(image))

    if largest >= len(names):
        raise SourceError(f"{name} has a label {largest}, and there are {len(names)} classes")
    return Source(name, total, (), names, fingerprint([*files, *([meta] if meta else [])]), members)


def _base_name(file: File) -> str:
    return PurePosixPath(file.path).name


class _CifarPart(NamedTuple):
    images: np.ndarray  # uint8 [n, 32, 32, 3]
    labels: list[int]
    kind: str  # the key of its labels


def _cifar(file: File) -> _CifarPart:
    content = _dictionary(file)
    kind = "labels" if "labels" in content else "fine_labels"
    packed, labels = content.get("data"), content.get(kind)
    data = packed.rows(_CIFAR_BYTES) if isinstance(packed, pickles.Array) else None
    if data is None:
        raise SourceError(f"{file.path} has no uint8 [n, 3072] of images under 'data': it is not a file of CIFAR's")
    whole = isinstance(labels, list) and all(type(label) is int and label >= 0 for label in labels)
    if labels is None or not whole or not len(labels) == len(data) > 0:
        raise SourceError(f"{file.path} has no whole number for each of its {len(data)} images under {kind!r}")
    return _CifarPart(data.reshape(-1, 3, _CIFAR_PX, _CIFAR_PX).transpose(0, 2, 3, 1), labels, kind)


def _cifar_names(meta: File | None, kind: str) -> tuple[str, ...]:
    """The class names of the file beside the images; numbers, where there is none."""
    _, key, count = _META[kind]
    names = _dictionary(meta).get(key) if meta else None
    if isinstance(names, list) and len(names) == count and all(isinstance(name, str) for name in names):
        return tuple(map(text, names))
    return tuple(str(number) for number in range(count))


def _dictionary(file: File) -> dict[str, Any]:
    """Of a pickle, with the texts of Python 2 as str; nothing that the file names is called."""
    with reading(file, "file of CIFAR's") as stream:
        content = stream.read(pickles.MOST_BYTES + 1)
    if len(content) > pickles.MOST_BYTES:
        raise SourceError(f"{file.path} has more than {pickles.MOST_BYTES:,} bytes: it is not a file of CIFAR's")
    try:
        found = pickles.load(content)
    except Exception as error:  # rubbish raises whatever it trips over, and may be quoted at length
        raise SourceError(f"{file.path} is not a file of CIFAR's ({error!s:.200})") from None
    if not isinstance(found, dict):
        raise SourceError(f"{file.path} is not a file of CIFAR's: it has no dictionary")
    return found
