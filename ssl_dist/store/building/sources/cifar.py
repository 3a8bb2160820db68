"""CIFAR-10 and CIFAR-100 as their authors publish them: pickled Python files, or binary files (``.bin``).

Source: https://www.cs.toronto.edu/~kriz/cifar.html (an image is three colour planes, each stored row by row; a record
of a binary file is the label, for CIFAR-100 the coarse and the fine label, of one byte each, and the image).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssl_dist.errors import SourceError
from ssl_dist.store.building.sources import pickles
from ssl_dist.store.building.sources.base import Member, Source, array_members, count_images, to_unicode
from ssl_dist.store.building.sources.files import File, fingerprint, open_source_file, sibling

# endings of what the authors packed beside the images
OTHER_FILES = ("/readme.html", "/file.txt~", "/batches.meta.txt", "/coarse_label_names.txt", "/fine_label_names.txt")
_PX = 32
_IMAGE_BYTES = 3 * _PX**2
_MAX_BYTES = 512 << 20  # of a file; CIFAR's largest has 155 MB
_MAX_COARSE_LABEL = 19
_NAMES_FILES, _TEST_FILES = {"batches.meta", "meta"}, {"test_batch", "test", "test_batch.bin", "test.bin"}
_BINARY_NAMES = re.compile(r"(data_batch_\d+|test_batch|train|test)\.bin", re.ASCII)
_HUNDRED_FILES = {"train.bin", "test.bin"}  # CIFAR-100's binary files


class _Dataset(NamedTuple):
    """One of the two datasets: its classes, where its class names are, and the names of its labels in pickles."""

    num_classes: int
    labels_key: str
    names_key: str
    pickled_names: str
    binary_names: str


_CIFAR10 = _Dataset(10, "labels", "label_names", "batches.meta", "batches.meta.txt")
_CIFAR100 = _Dataset(100, "fine_labels", "fine_label_names", "meta", "fine_label_names.txt")


class _Part(NamedTuple):
    """The images of one file, as colour planes, with their labels."""

    dataset: _Dataset
    planes: np.ndarray  # uint8 [N, 3072]
    labels: list[int]


def is_binary_name(name: str) -> bool:
    """Return whether a file name is one of CIFAR's binary files, which begin with pixels."""
    return _BINARY_NAMES.fullmatch(name) is not None


def has_binary_length(file: File) -> bool:
    """Return whether a file is as long as some number of records of CIFAR-10 or of CIFAR-100."""
    with open_source_file(file, "file of CIFAR") as content:
        num_bytes = content.seek(0, 2)
    return num_bytes > 0 and 0 in (num_bytes % (1 + _IMAGE_BYTES), num_bytes % (2 + _IMAGE_BYTES))


def list_cifar(name: str, files: Sequence[File]) -> Source:
    """List pickled or binary files of CIFAR-10, or of CIFAR-100 with its fine labels.

    Raises:
        SourceError: a file is damaged or not CIFAR's, or a folder has both images to train with and to test with.
    """
    files = [file for file in files if file.name not in _NAMES_FILES]
    if not files:
        raise SourceError(f"{name}: it has the names of CIFAR's classes, but no file of its images")
    num_tests = sum(file.name in _TEST_FILES for file in files)
    if Path(name).is_dir() and 0 < num_tests < len(files):
        end = ".bin" if is_binary_name(files[0].name) else ""
        raise SourceError(
            f"{name} has images to train with and to test with: build a store of each, of CIFAR-10 by"
            f" '{name}/data_batch_{{1..5}}{end}' and '{name}/test_batch{end}', of CIFAR-100 by '{name}/train{end}' and"
            f" '{name}/test{end}'"
        )
    found = [(part.dataset, len(part.labels)) for part in map(_read_part, files)]
    if len({dataset for dataset, _ in found}) > 1:
        raise SourceError(f"{name}: it has files of CIFAR-10 and of CIFAR-100: build a store of each")

    def members() -> Iterator[Member]:
        for file in files:
            _, planes, labels = _read_part(file)
            yield from array_members(file, planes.reshape(-1, 3, _PX, _PX).transpose(0, 2, 3, 1), labels)

    names_file, class_names = _class_names(files[0], found[0][0])
    total, listed = sum(num_images for _, num_images in found), [*files, *filter(None, [names_file])]
    return Source(name, total, class_names, fingerprint(listed), members)


def _read_part(file: File) -> _Part:
    """Read all images of a file, with their labels."""
    part = _read_binary(file) if is_binary_name(file.name) else _read_pickled(file)
    if (largest := max(part.labels)) >= part.dataset.num_classes:
        raise SourceError(f"{file.path} has a label {largest}, and there are {part.dataset.num_classes} classes")
    return part


def _read_binary(file: File) -> _Part:
    dataset, label_bytes = (_CIFAR100, 2) if file.name in _HUNDRED_FILES else (_CIFAR10, 1)
    content, record_bytes = _read_bytes(file), label_bytes + _IMAGE_BYTES
    num_images = count_images(file, len(content), record_bytes, f"CIFAR-{dataset.num_classes}")
    records = np.frombuffer(content, dtype=np.uint8).reshape(num_images, record_bytes)
    if label_bytes == 2 and (coarse := int(records[:, 0].max())) > _MAX_COARSE_LABEL:
        raise SourceError(f"{file.path} has a coarse label {coarse}, and the largest is {_MAX_COARSE_LABEL}")
    return _Part(dataset, records[:, label_bytes:], records[:, label_bytes - 1].tolist())


def _read_pickled(file: File) -> _Part:
    content = _read_dictionary(file)
    dataset = _CIFAR10 if _CIFAR10.labels_key in content else _CIFAR100
    key = dataset.labels_key
    planes, labels = pickles.uint8_rows(content.get("data"), _IMAGE_BYTES), content.get(key)
    if planes is None:
        raise SourceError(f"{file.path} has no uint8 [n, 3072] of images under 'data': it is not a file of CIFAR")
    numbers = labels if isinstance(labels, list) and all(type(label) is int and label >= 0 for label in labels) else []
    if not len(numbers) == len(planes) > 0:
        raise SourceError(f"{file.path} has no whole number for each of its {len(planes)} images under {key!r}")
    return _Part(dataset, planes, numbers)


def _class_names(file: File, dataset: _Dataset) -> tuple[File | None, tuple[str, ...]]:
    """Return the file of class names beside a file of images, and the names; numbers if it does not have them."""
    is_binary, names = is_binary_name(file.name), None
    names_file = sibling(file, dataset.binary_names if is_binary else dataset.pickled_names)
    if names_file and is_binary:
        names = list(filter(None, map(str.strip, _read_bytes(names_file).decode(errors="replace").splitlines())))
    elif names_file:
        names = _read_dictionary(names_file).get(dataset.names_key)
    if isinstance(names, list) and len(names) == dataset.num_classes and all(isinstance(name, str) for name in names):
        return names_file, tuple(map(to_unicode, names))
    return names_file, tuple(str(number) for number in range(dataset.num_classes))


def _read_dictionary(file: File) -> dict[str, Any]:
    """Return the dictionary that a file pickles; nothing that the file names is called."""
    content = _read_bytes(file)
    try:
        value = pickles.load(content)
    except Exception as error:  # a damaged file raises whatever the reader meets, and the message may be long
        raise SourceError(f"{file.path} is not a file of CIFAR ({error!s:.200})") from None
    if not isinstance(value, dict):
        raise SourceError(f"{file.path} is not a file of CIFAR: it has no dictionary")
    return value


def _read_bytes(file: File) -> bytes:
    with open_source_file(file, "file of CIFAR") as stream:
        content = stream.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise SourceError(f"{file.path} has more than {_MAX_BYTES:,} bytes: it is not a file of CIFAR")
    return content
