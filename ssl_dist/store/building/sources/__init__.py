"""Where images come from. What a file is, is known by how it begins, not by what it is called."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path, PurePosixPath

from ssl_dist.errors import SourceError
from ssl_dist.store.building.sources import arrays, images, tables
from ssl_dist.store.building.sources.base import Member, Share, Source
from ssl_dist.store.building.sources.files import File, expand, is_pattern, reading
from ssl_dist.store.building.sources.stores import is_store, of_stores
from ssl_dist.store.building.sources.tars import is_tar

__all__ = ["File", "Member", "Share", "Source", "list_source", "of_stores"]

_HEAD = 262  # bytes read of each file
_PICKLE, _PROTOCOLS = b"\x80", b"\x02\x03\x04\x05"
_OTHER = "something else"
_LISTS = {
    "tar": images.of_tars,
    "table": tables.of_tables,
    "STL-10": arrays.of_stl10,
    "CIFAR": arrays.of_cifar,
}

_OTHERS = {"STL-10": arrays.STL_OTHERS, "CIFAR": arrays.CIFAR_OTHERS}


def list_source(source: str | os.PathLike[str]) -> Source:
    """List what there is to build a store from.

    Args:
        source: a folder (class folders, or flat); a tar of one; WebDataset shards; STL-10's ``*_X.bin``; CIFAR's Python
            files; Parquet or Arrow files with a column of images; another store; all but this by path, URI or pattern
            (see ``files.expand``).

    Raises:
        SourceError: nothing there, nothing of these, or files of several kinds.
    """
    name = os.fspath(source)
    folder = Path(name)
    if not is_pattern(name) and not os.path.exists(name):  # which takes any name; Path does not
        raise SourceError(f"{name}: no such file or folder")
    if is_store(folder):
        return of_stores(name, [folder])
    files = list(images.files_below(folder)) if os.path.isdir(name) else expand(name)
    if any(file.is_regular and images.is_image(file.key) for file in files):
        return images.of_files(name, files)
    found: dict[str, list[File]] = {}
    for file in files:
        found.setdefault(_kind(file), []).append(file)
    foreign = found.pop(_OTHER, [])
    if len(found) > 1:
        raise SourceError(f"{name}: files of several kinds ({', '.join(found)}): build a store of each, by a pattern")
    if not found:
        raise SourceError(
            f"{name}: no image file ({', '.join(sorted(images.IMAGE_SUFFIXES))}) among {len(files)} files, and no tar,"
            " Parquet or Arrow file, STL-10's or CIFAR's"
        )
    [(kind, alike)] = found.items()
    listed = _LISTS[kind](name, alike)
    others = (file.key for file in foreign if not file.path.endswith(_OTHERS.get(kind, ())))
    return replace(listed, foreign=(*listed.foreign, *others))


def _kind(file: File) -> str:
    """By what it begins with; STL-10's binary files, which begin with pixels, by their name.

    Raises:
        SourceError: it cannot be read, or begins unlike what its name says.
    """
    if not file.is_regular:
        return _OTHER
    if file.path.endswith(arrays.STL_SUFFIX):
        return "STL-10"
    with reading(file, "file") as content:
        start = content.read(_HEAD)
    suffix = PurePosixPath(file.path).suffix.lower()
    if is_tar(start) or suffix == ".tar":
        return "tar"
    if start.startswith((tables.PARQUET, tables.ARROW, tables.STREAM)):
        return "table"
    if suffix in (".parquet", ".arrow"):
        raise SourceError(f"{file.path} is not a Parquet or Arrow file, by how it begins: fetch it anew, or remove it")
    return "CIFAR" if start[:1] == _PICKLE and start[1:2] in _PROTOCOLS else _OTHER
