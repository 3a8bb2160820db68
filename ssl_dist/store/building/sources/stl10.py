"""STL-10's binary files.

Source: https://cs.stanford.edu/~acoates/stl10/ (an image is three colour planes, each stored column by column).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssl_dist.errors import SourceError
from ssl_dist.store.building.sources.base import Member, Source, array_members, count_images
from ssl_dist.store.building.sources.files import File, fingerprint, open_source_file, sibling
from ssl_dist.store.schema import NO_LABEL

SUFFIX = "_X.bin"
# endings of what the authors packed beside the images
OTHER_FILES = ("_y.bin", "/class_names.txt", "/fold_indices.txt")
_PX = 96
_IMAGE_BYTES = 3 * _PX**2
_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
_READ_IMAGES = 256  # images read at a time


class _Part(NamedTuple):
    """One file of images, and the file of their labels beside it, if there is one."""

    file: File
    labels_file: File | None
    labels: list[int]


def list_stl10(name: str, files: Sequence[File]) -> Source:
    """List ``train_X.bin``, ``test_X.bin`` or ``unlabeled_X.bin``; their labels are in the ``_y.bin`` beside them.

    Raises:
        SourceError: a file's length is not a multiple of an image's, the number of labels differs from the number of
            images, or a folder has several of the files.
    """
    if Path(name).is_dir() and len(files) > 1:
        names = ", ".join(file.key for file in files)
        raise SourceError(
            f"{name} has several files of images, to train with and to test with: build a store of one, by"
            f" '{name}/{files[-1].key}', or of some, by '{name}/{{train,unlabeled}}{SUFFIX}'; it has {names}"
        )
    parts = [_read_part(file) for file in files]

    def members() -> Iterator[Member]:
        for file, _, labels in parts:
            with open_source_file(file, "file of STL-10") as content:
                for first in range(0, len(labels), _READ_IMAGES):
                    some = labels[first : first + _READ_IMAGES]
                    packed = np.frombuffer(content.read(len(some) * _IMAGE_BYTES), dtype=np.uint8)
                    images = packed.reshape(-1, 3, _PX, _PX).transpose(0, 3, 2, 1)
                    yield from array_members(file, images, some, first)

    labels_files = [part.labels_file for part in parts if part.labels_file]
    total = sum(len(part.labels) for part in parts)
    return Source(name, total, _CLASSES if labels_files else (), fingerprint([*files, *labels_files]), members)


def _read_part(file: File) -> _Part:
    """Count the images of a file, and read their labels if there are any."""
    with open_source_file(file, "file of STL-10") as content:
        num_images = count_images(file, content.seek(0, 2), _IMAGE_BYTES, "STL-10")
    labels_file = sibling(file, file.name.removesuffix(SUFFIX) + "_y.bin")
    labels = _read_labels(labels_file) if labels_file else [NO_LABEL] * num_images
    if len(labels) != num_images:
        raise SourceError(f"{file.path} has {num_images} images, and the file of labels beside it {len(labels)}")
    return _Part(file, labels_file, labels)


def _read_labels(file: File) -> list[int]:
    """Return the labels of a file, which has a byte for each, numbered from 0."""
    with open_source_file(file, "file of STL-10's labels"):
        labels = [number - 1 for number in file.read()]
    if not set(labels) <= set(range(len(_CLASSES))):
        raise SourceError(f"{file.path} has labels that are not 1 to {len(_CLASSES)}")
    return labels
