"""Where images come from: a tree of folders, or a tar of one, listed once and then streamed in a fixed order.

A source is listed by name first (an uncompressed tar's data is skipped over, not read), which gives the classes and
the total, and then read in the same order. Nothing is extracted and no name from an archive is used as a path.
"""

from __future__ import annotations

import itertools
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ssl_dist.errors import SourceError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
NO_LABEL = -1


class Member(NamedTuple):
    """One file of a source: its path inside the source, and its bytes or the file to read them from."""

    key: str
    label: int  # index into class_names, NO_LABEL where the layout gives none
    content: bytes | Path


@dataclass(frozen=True)
class Source:
    """A listed source.

    Attributes:
        path: the folder or tar.
        keys: paths of the image files inside it, sorted for a folder, in archive order for a tar.
        foreign: paths of the other regular files.
        class_names: sorted names of the class folders; empty for a flat source.
    """

    path: Path
    keys: tuple[str, ...]
    foreign: tuple[str, ...]
    class_names: tuple[str, ...]
    common: int  # leading folders that all images share

    def members(self) -> Iterator[Member]:
        """Every image file once, in the order of ``keys``."""
        index = {name: label for label, name in enumerate(self.class_names)}
        if self.path.is_dir():
            for key in self.keys:
                yield Member(key, index.get(self._class_of(key), NO_LABEL), self.path / key)
            return
        for archive, info in _regular_members(self.path):
            if _is_image(info.name):
                file = archive.extractfile(info)
                assert file is not None, "a regular member has a file"
                yield Member(info.name, index.get(self._class_of(info.name), NO_LABEL), file.read())

    def _class_of(self, key: str) -> str:
        folders = PurePosixPath(key).parts[self.common : -1]
        return folders[0] if folders else ""


def list_source(path: Path) -> Source:
    """List a class-per-folder tree, a flat folder, or a tar of either.

    The class of an image is the first folder below those that all images share; a source whose images all lie in one
    folder is flat and has no classes.

    Raises:
        SourceError: nothing there, not a folder or tar, or no image file in it.
    """
    if path.is_dir():
        names = sorted(_files_below(path))
    elif path.is_file():
        names = [info.name for _, info in _regular_members(path)]
    else:
        raise SourceError(f"{path}: no such folder or tar file")
    keys = tuple(name for name in names if _is_image(name))
    foreign = tuple(name for name in names if not _is_image(name))
    if not keys:
        raise SourceError(f"{path}: no image file ({', '.join(sorted(IMAGE_SUFFIXES))}) among {len(names)} files")
    parents = {PurePosixPath(key).parts[:-1] for key in keys}
    common = _shared_length(min(parents), max(parents))
    classes = {parent[common] for parent in parents if len(parent) > common}
    return Source(path, keys, foreign, tuple(sorted(classes)), common)


def _files_below(folder: Path) -> Iterator[str]:
    """Paths of all files, also behind links to folders, each folder once."""

    def refuse(error: OSError) -> None:
        raise SourceError(f"{error.filename}: {error.strerror}")

    seen = set()
    for root, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        seen.add(os.path.realpath(root))
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(root, name)) not in seen]
        yield from ((Path(root) / name).relative_to(folder).as_posix() for name in files)


def _shared_length(first: tuple[str, ...], last: tuple[str, ...]) -> int:
    """Leading parts that two paths share; of the smallest and largest of many, what all share."""
    pairs = zip(first, last, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _regular_members(path: Path) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The regular files of a tar in archive order; links, devices and folders are passed over."""
    try:
        with tarfile.open(path, mode="r:*") as archive:
            while (info := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header it has seen
                if info.isreg():
                    yield archive, info
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise SourceError(f"{path} is neither a folder nor a whole tar file ({error})") from None
