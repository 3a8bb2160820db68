"""The sources that a store can be built from. A file's kind is known by its first bytes, not by its name."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from ssl_dist.errors import SourceError
from ssl_dist.store.building.sources import cifar, images, stl10, tables
from ssl_dist.store.building.sources.base import HashRange, Member, Source
from ssl_dist.store.building.sources.files import File, expand_pattern, is_pattern, open_source_file
from ssl_dist.store.building.sources.stores import list_stores
from ssl_dist.store.building.sources.tars import is_tar
from ssl_dist.store.schema import MANIFEST

__all__ = ["File", "HashRange", "Member", "Source", "list_source", "list_stores"]

_HEAD_BYTES = 262  # bytes read from the start of each file: enough to know a tar
_PICKLE, _PROTOCOLS = b"\x80", b"\x02\x03\x04\x05"
_OTHER, _BINARY = "something else", "CIFAR's binary form"
# the function that lists each kind, and endings of files beside the images that need no warning
_KINDS: dict[str, tuple[Callable[[str, list[File]], Source], tuple[str, ...]]] = {
    "tar": (images.list_tars, ()),
    "table": (tables.list_tables, ()),
    "STL-10": (stl10.list_stl10, stl10.OTHER_FILES),
    "CIFAR": (cifar.list_cifar, cifar.OTHER_FILES),
    _BINARY: (cifar.list_cifar, cifar.OTHER_FILES),
}


def list_source(source: str | os.PathLike[str]) -> Source:
    """List the images that a store can be built from.

    Args:
        source: a folder (of class folders, or flat); a tar of one; WebDataset shards; STL-10's ``*_X.bin``; CIFAR's
            Python or binary files; Parquet or Arrow files with a column of images; another store. All but a store may
            be given by path, URI or pattern (see ``files.expand_pattern``).

    Raises:
        SourceError: the source does not exist, has none of these, or has files of several kinds.
    """
    name = os.fspath(source)
    folder = Path(name)
    if not is_pattern(name) and not os.path.exists(name):
        raise SourceError(f"{name}: no such file or folder")
    if os.path.isfile(folder / MANIFEST):  # these two take any text, unlike the functions of Path
        return list_stores(name, [folder])
    files = images.files_below(folder) if os.path.isdir(name) else expand_pattern(name)
    if found := images.find_images(files):
        return images.list_images(name, files, found)
    by_kind: dict[str, list[File]] = {}
    for file in files:
        by_kind.setdefault(_kind_of(file), []).append(file)
    others = by_kind.pop(_OTHER, [])
    if len(by_kind) > 1 and not any(map(cifar.has_binary_length, by_kind.get(_BINARY, []))):
        others += by_kind.pop(_BINARY, [])  # other files that have such names
    if len(by_kind) > 1:
        raise SourceError(f"{name}: files of several kinds ({', '.join(by_kind)}): build a store of each, by a pattern")
    if not by_kind:
        raise SourceError(
            f"{name}: no image file ({images.FORMATS}) among {len(files)} files, and no tar,"
            " Parquet or Arrow file, nor any of STL-10 or CIFAR"
        )
    [(kind, alike)] = by_kind.items()
    list_kind, known_endings = _KINDS[kind]
    listed = list_kind(name, alike)
    unexpected = (file.key for file in others if not file.path.endswith(known_endings))
    return replace(listed, non_images=(*listed.non_images, *unexpected))


def _kind_of(file: File) -> str:
    """Return a file's kind by its first bytes; that of STL-10's and CIFAR's binary files, which are pixels, by name.

    Raises:
        SourceError: the file cannot be read, or its first bytes contradict its name.
    """
    if not file.is_regular:
        return _OTHER
    if file.path.endswith(stl10.SUFFIX):
        return "STL-10"
    with open_source_file(file, "file") as content:
        start = content.read(_HEAD_BYTES)
    path = PurePosixPath(file.path)
    suffix = path.suffix.lower()
    if is_tar(start) or suffix == ".tar":
        return "tar"
    if start.startswith((tables.PARQUET, tables.ARROW, tables.STREAM)):
        return "table"
    if suffix in (".parquet", ".arrow"):
        raise SourceError(f"{path} is not a Parquet or Arrow file, though it is named so: fetch it again, or remove it")
    if cifar.is_binary_name(path.name):
        return _BINARY
    return "CIFAR" if start[:1] == _PICKLE and start[1:2] in _PROTOCOLS else _OTHER
