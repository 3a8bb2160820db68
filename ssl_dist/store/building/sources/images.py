"""Image files as a source: in folders, or in tars, each of which may be a WebDataset shard.

An image's class is the first folder that the images do not all share. In a WebDataset shard it is the number in the
``.cls`` file of the same sample. A tar is read twice: once for the names, where the data of an uncompressed tar is
skipped, and once for the images, in the same order. Nothing is extracted, and no name in an archive is used as a path.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ssl_dist.errors import SourceError
from ssl_dist.store.building.sources.base import MAX_CLASSES, Member, Source, to_unicode
from ssl_dist.store.building.sources.files import File, fingerprint, local_file, open_source_file
from ssl_dist.store.building.sources.tars import regular_files
from ssl_dist.store.decode import MAX_FILE_BYTES
from ssl_dist.store.schema import NO_LABEL

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
_CLASS_SUFFIX = ".cls"  # of the file in a WebDataset sample that contains the number of its class
_MAX_DIGITS = 9  # of that number


def is_image(name: str) -> bool:
    """Return whether a file's name is that of an image, and not hidden."""
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def files_below(folder: Path) -> Iterator[File]:
    """Yield all files below a folder, sorted; links to folders are followed, but no folder is entered twice.

    Raises:
        SourceError: a folder cannot be read.
    """
    keys = sorted(_keys_below(folder))
    yield from (local_file(str(folder / key), key) for key in keys)


def _keys_below(folder: Path) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise SourceError(f"{error.filename}: {error.strerror}")

    seen = set()
    for root, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        seen.add(os.path.realpath(root))
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(root, name)) not in seen]
        yield from ((Path(root) / name).relative_to(folder).as_posix() for name in files)


def list_images(name: str, files: Sequence[File]) -> Source:
    """List image files.

    Raises:
        SourceError: none of the files is an image.
    """
    images = [file for file in files if file.is_regular and is_image(file.key)]
    non_images = tuple(file.key for file in files if not (file.is_regular and is_image(file.key)))
    classes = _ClassFolders.find(name, [file.key for file in images], len(files))

    def members() -> Iterator[Member]:
        return (Member(file.key, classes.label(file.key), file) for file in images)

    return Source(name, len(images), non_images, classes.names, fingerprint(files), members)


def list_tars(name: str, tars: Sequence[File]) -> Source:
    """List the regular files in tars, in their order.

    Raises:
        SourceError: no file is an image, a tar is damaged or cut, or a WebDataset sample's class is not a number.
    """
    keys, non_images = list[str](), list[str]()
    labels: dict[str, int] = {}
    for tar in tars:
        for key, content in _read_tar(tar, lambda name: name.endswith(_CLASS_SUFFIX)):
            if is_image(key):
                keys.append(key)
            elif content is not None:
                labels[_sample_name(tar, key)] = _parse_class(tar, key, content)
            else:
                non_images.append(key)
    classes = _ClassFolders.find(name, keys, len(keys) + len(non_images))
    names = classes.names
    if labels:
        names = tuple(str(number) for number in range(max(labels.values()) + 1))

    def label(tar: File, key: str) -> int:
        return labels.get(_sample_name(tar, key), NO_LABEL) if labels else classes.label(key)

    def members() -> Iterator[Member]:
        for tar in tars:
            for key, content in _read_tar(tar, is_image):
                if content is not None:
                    yield Member(key, label(tar, key), content)

    return Source(name, len(keys), () if labels else tuple(non_images), names, fingerprint(tars), members)


class _ClassFolders(NamedTuple):
    """The folders that are classes.

    Attributes:
        names: the classes' names.
        numbers: the number of each folder's class.
        depth: number of folders above the class folders.
    """

    names: tuple[str, ...]
    numbers: dict[str, int]
    depth: int

    @classmethod
    def find(cls, name: str, keys: Sequence[str], num_files: int) -> _ClassFolders:
        """Find the class folders of a source called ``name``, which has images of these keys among its files."""
        if not keys:
            raise SourceError(f"{name}: no image file ({', '.join(sorted(IMAGE_SUFFIXES))}) among {num_files} files")
        parents = {PurePosixPath(key).parts[:-1] for key in keys}
        depth = len(os.path.commonprefix(list(parents)))  # noqa: RUF071  (these are tuples: it compares folders)
        folders = sorted({parent[depth] for parent in parents if len(parent) > depth})
        names = tuple(map(to_unicode, folders))
        if len(set(names)) < len(names):
            raise SourceError(
                f"{name}: names of class folders that are not text would become the same class: rename them"
            )
        return cls(names, {folder: number for number, folder in enumerate(folders)}, depth)

    def label(self, key: str) -> int:
        """Return the class of an image; NO_LABEL: it lies above the class folders."""
        folders = PurePosixPath(key).parts[self.depth : -1]
        return self.numbers[folders[0]] if folders else NO_LABEL


def _sample_name(tar: File, key: str) -> str:
    """Return the WebDataset sample that a file belongs to: its path up to the first dot of its name."""
    folder, _, name = key.rpartition("/")
    return f"{tar.path}\n{folder}/{name.partition('.')[0]}"


def _parse_class(tar: File, key: str, content: bytes) -> int:
    digits = content.strip()
    if not (digits.isdigit() and len(digits) <= _MAX_DIGITS):
        raise SourceError(f"{tar.path}: {key} is not the number of a class")
    if (number := int(digits)) >= MAX_CLASSES:
        raise SourceError(f"{tar.path}: {key} says class {number}: number the classes from 0, below {MAX_CLASSES:,}")
    return number


def _read_tar(tar: File, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes | None]]:
    """Yield the regular files of a tar in archive order, with the content of those that are wanted by name.

    A file that is larger than an image may be is cut one byte above that size, so that ``decode`` refuses it.
    """
    with open_source_file(tar, "tar file") as packed:
        yield from regular_files(packed, is_wanted, MAX_FILE_BYTES + 1)
