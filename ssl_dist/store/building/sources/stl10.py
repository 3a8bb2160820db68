"""STL-10's binary files.

Source: https://cs.stanford.edu/~acoates/stl10/ (an image is three colour planes, each stored column by column).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from ssl_dist.errors import SourceError
from ssl_dist.store.building.sources.base import Member, Source
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
    num_images: int
    labels_file: File | None
    labels: np.ndarray | None


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
        for file, num_images, _, labels in parts:
            with open_source_file(file, "file of STL-10") as content:
                for first in range(0, num_images, _READ_IMAGES):
                    rows = min(_READ_IMAGES, num_images - first)
                    packed = np.frombuffer(content.read(rows * _IMAGE_BYTES), dtype=np.uint8)
                    images = packed.reshape(rows, 3, _PX, _PX).transpose(0, 3, 2, 1)  # [N, H, W, 3]
                    for number, image in enumerate(images, first):
                        label = NO_LABEL if labels is None else int(labels[number])
                        yield Member(f"{file.key}/{number}", label, np.ascontiguousarray(image))

    labels_files = [part.labels_file for part in parts if part.labels_file]
    total = sum(part.num_images for part in parts)
    return Source(name, total, (), _CLASSES if labels_files else (), fingerprint([*files, *labels_files]), members)


def _read_part(file: File) -> _Part:
    """Count the images of a file, and read their labels if there are any."""
    with open_source_file(file, "file of STL-10") as content:
        size = content.seek(0, 2)
    if size == 0 or size % _IMAGE_BYTES:
        raise SourceError(f"{file.path} has {size} bytes: STL-10's images take {_IMAGE_BYTES} each")
    num_images = size // _IMAGE_BYTES
    labels_file = sibling(file, PurePosixPath(file.path).name.removesuffix(SUFFIX) + "_y.bin")
    labels = _read_labels(labels_file) if labels_file else None
    if labels is not None and len(labels) != num_images:
        raise SourceError(f"{file.path} has {num_images} images, and the file of labels beside it {len(labels)}")
    return _Part(file, num_images, labels_file, labels)


def _read_labels(file: File) -> np.ndarray:
    """Return the labels of a file, int64 ``[n]`` from 0."""
    with open_source_file(file, "file of STL-10's labels"):
        labels = np.frombuffer(file.read(), dtype=np.uint8).astype(np.int64) - 1
    if len(labels) and not (labels.min() >= 0 and labels.max() < len(_CLASSES)):
        raise SourceError(f"{file.path} has labels that are not 1 to {len(_CLASSES)}")
    return labels
