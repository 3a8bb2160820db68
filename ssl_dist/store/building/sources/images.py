"""Image files: in folders, or in tars, of which each may be a WebDataset shard.

The class of an image is the first folder below those that all images share, or what its ``.cls`` neighbour in a
WebDataset shard says. A tar is listed by name first (an uncompressed one's data is skipped over, not read) and then
read in the same order. Nothing is extracted and no name from an archive is used as a path.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ssl_dist.errors import SourceError
from ssl_dist.store.building.sources.base import MOST_CLASSES, Member, Source, text
from ssl_dist.store.building.sources.files import File, fingerprint, local, reading
from ssl_dist.store.building.sources.tars import regular_files
from ssl_dist.store.decode import MAX_FILE_BYTES
from ssl_dist.store.schema import NO_LABEL

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
_CLASS = ".cls"  # of a WebDataset sample: its class as a number
_MOST_DIGITS = 9  # of that number


def is_image(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def files_below(folder: Path) -> Iterator[File]:
    """All files, sorted, also behind links to folders, each folder once.

    Raises:
        SourceError: a folder cannot be read.
    """
    keys = sorted(_keys_below(folder))
    yield from (local(str(folder / key), key) for key in keys)


def _keys_below(folder: Path) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise SourceError(f"{error.filename}: {error.strerror}")

    seen = set()
    for root, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        seen.add(os.path.realpath(root))
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(root, name)) not in seen]
        yield from ((Path(root) / name).relative_to(folder).as_posix() for name in files)


def of_files(name: str, files: Sequence[File]) -> Source:
    """Each file by itself.

    Raises:
        SourceError: none of them is an image.
    """
    images = [file for file in files if file.is_regular and is_image(file.key)]
    foreign = tuple(file.key for file in files if not (file.is_regular and is_image(file.key)))
    classes = _Classes.of(name, [file.key for file in images], len(files))

    def members() -> Iterator[Member]:
        return (Member(file.key, classes.label(file.key), file) for file in images)

    return Source(name, len(images), foreign, classes.names, fingerprint(files), members)


def of_tars(name: str, tars: Sequence[File]) -> Source:
    """The regular files in tars, in their order.

    Raises:
        SourceError: none is an image, one of the tars is none or cut, or WebDataset samples have no readable class.
    """
    keys, foreign = list[str](), list[str]()
    labels: dict[str, int] = {}
    for tar in tars:
        for key, content in _regular_members(tar, _says_class):
            if is_image(key):
                keys.append(key)
            elif content is not None:
                labels[_sample(tar, key)] = _class_number(tar, key, content)
            else:
                foreign.append(key)
    classes = _Classes.of(name, keys, len(keys) + len(foreign))
    names = classes.names
    if labels:
        names = tuple(str(number) for number in range(max(labels.values()) + 1))

    def label(tar: File, key: str) -> int:
        return labels.get(_sample(tar, key), NO_LABEL) if labels else classes.label(key)

    def members() -> Iterator[Member]:
        for tar in tars:
            for key, content in _regular_members(tar, is_image):
                if content is not None:
                    yield Member(key, label(tar, key), content)

    return Source(name, len(keys), () if labels else tuple(foreign), names, fingerprint(tars), members)


class _Classes(NamedTuple):
    """Class folders: their names, and how many folders lie above them."""

    names: tuple[str, ...]
    numbers: dict[str, int]
    above: int

    @classmethod
    def of(cls, name: str, keys: Sequence[str], num_files: int) -> _Classes:
        if not keys:
            raise SourceError(f"{name}: no image file ({', '.join(sorted(IMAGE_SUFFIXES))}) among {num_files} files")
        parents = {PurePosixPath(key).parts[:-1] for key in keys}
        above = _shared_length(min(parents), max(parents))
        folders = sorted({parent[above] for parent in parents if len(parent) > above})
        names = tuple(map(text, folders))
        if len(set(names)) < len(names):
            raise SourceError(f"{name}: class folders whose names are no text, and would be one class: rename them")
        return cls(names, {folder: number for number, folder in enumerate(folders)}, above)

    def label(self, key: str) -> int:
        folders = PurePosixPath(key).parts[self.above : -1]
        return self.numbers[folders[0]] if folders else NO_LABEL


def _shared_length(first: tuple[str, ...], last: tuple[str, ...]) -> int:
    """Leading parts that two paths share; of the smallest and largest of many, what all share."""
    pairs = zip(first, last, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _sample(tar: File, key: str) -> str:
    """The WebDataset sample that a file belongs to: all files up to the first dot of their name."""
    folder, _, name = key.rpartition("/")
    return f"{tar.path}\n{folder}/{name.partition('.')[0]}"


def _says_class(key: str) -> bool:
    return key.endswith(_CLASS)


def _class_number(tar: File, key: str, content: bytes) -> int:
    digits = content.strip()
    if not (digits.isdigit() and len(digits) <= _MOST_DIGITS):
        raise SourceError(f"{tar.path}: {key} is not the number of a class")
    if (number := int(digits)) >= MOST_CLASSES:
        raise SourceError(f"{tar.path}: {key} says class {number}: number the classes from 0, below {MOST_CLASSES:,}")
    return number


def _regular_members(tar: File, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes | None]]:
    """The regular files of a tar in archive order, with the bytes of those wanted by name (of one larger than an image
    may be, one byte more than that: ``decode`` then says so)."""
    with reading(tar, "tar file") as packed:
        yield from regular_files(packed, wanted, MAX_FILE_BYTES + 1)
