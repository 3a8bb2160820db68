"""The sources that a store can be built from, known by names or first bytes; ``image_names`` says what is an image."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from ssl_dist.errors import SourceError
from ssl_dist.store.building.sources import cifar, images, stl10, tables
from ssl_dist.store.building.sources.base import SPLITS, HashRange, LeftOut, Member, Source
from ssl_dist.store.building.sources.files import (
    File,
    expand_pattern,
    files_below,
    hidden_part,
    is_pattern,
    open_source_file,
)
from ssl_dist.store.building.sources.image_names import FORMATS, find_images
from ssl_dist.store.building.sources.samples import accompanies
from ssl_dist.store.building.sources.stores import list_stores
from ssl_dist.store.building.sources.tars import is_tar
from ssl_dist.store.schema import MANIFEST

__all__ = ["File", "HashRange", "LeftOut", "Member", "Source", "list_source", "list_stores"]

log = logging.getLogger(__name__)

_HEAD_BYTES = 262  # bytes read from the start of each file: enough to know a tar
_PICKLE, _PROTOCOLS = b"\x80", b"\x02\x03\x04\x05"
_ARCHIVES = (".zip", ".7z", ".rar", ".zst", ".gz", ".bz2", ".xz")
_PACKED = (".tar", ".tgz", ".parquet", ".arrow")  # endings of files that hold many images
_OTHER, _BINARY = "something else", "CIFAR's binary form"
# the function that lists each kind, and endings of files beside the images that need no warning
_KINDS: dict[str, tuple[Callable[[str, list[File]], Source], tuple[str, ...]]] = {
    "tar": (images.list_tars, ()),
    "table": (tables.list_tables, ()),
    "STL-10": (stl10.list_stl10, stl10.OTHER_FILES),
    "CIFAR": (cifar.list_cifar, cifar.OTHER_FILES),
    _BINARY: (cifar.list_cifar, cifar.OTHER_FILES),
}


def list_source(source: str | os.PathLike[str], known: Collection[str] = ()) -> Source:
    """List the images that a store can be built from.

    Args:
        source: a folder (of class folders, or flat); a tar of one; WebDataset shards; STL-10's ``*_X.bin``; CIFAR's
            Python or binary files; Parquet or Arrow files with a column of images; another store. All but a store may
            be given by path, URI or pattern (see ``files.expand_pattern``). Hidden files (see ``files.hidden_part``) in
            a folder, a tar or among those of a pattern are passed over.
        known: the classes of the store that the images are added to: where all images lie in one folder that has the
            name of one of them, they are of that class.

    Raises:
        SourceError: the source does not exist, has none of these, or has files of several kinds.
    """
    name = os.fspath(source)
    folder = Path(name)
    if not os.path.exists(name) and not is_pattern(name):
        raise SourceError(f"{name}: no such file or folder")
    if os.path.isfile(folder / MANIFEST):  # these two take any text, unlike the functions of Path
        return list_stores(name, [folder])
    found = files_below(folder) if os.path.isdir(name) else expand_pattern(name)
    parts = {} if os.path.isfile(name) else {file.key: hidden_part(file.key) for file in found}  # a named file is meant
    hidden = tuple(LeftOut(part, "hidden") for part in dict.fromkeys(filter(None, parts.values())))
    shown = [file for file in found if parts.get(file.key) is None]
    again = [file for file in shown if not file.is_regular and file.filesystem is None and os.path.isdir(file.path)]
    entered = {file.key for file in again}
    files = [file for file in shown if file.key not in entered]
    if hidden and not files:
        raise SourceError(f"{name}: all files are hidden, below {hidden[0].key}: hidden files are passed over")
    listed = _list_files(name, files, known)
    links = tuple(
        LeftOut(file.key, "a folder that is read already, in its own place or by another link") for file in again
    )
    return replace(listed, left_out=(*listed.left_out, *links), passed_over=(*listed.passed_over, *hidden))


def _list_files(name: str, files: list[File], known: Collection[str]) -> Source:
    """List the images in files, or among them."""
    if found := find_images(files):
        packed = [file.path for file in files if file.is_regular and PurePosixPath(file.path).suffix.lower() in _PACKED]
        if len(found) <= len(packed):
            raise SourceError(
                f"{name}: files of several kinds ({len(found)} images beside {len(packed)} as {packed[0]}): build a"
                " store of each, by a pattern"
            )
        return images.list_images(name, files, found, known)
    by_kind: dict[str, list[File]] = {}
    for file in files:
        by_kind.setdefault(_kind_of(file), []).append(file)
    others = by_kind.pop(_OTHER, [])
    if len(by_kind) > 1 and not any(map(cifar.has_binary_length, by_kind.get(_BINARY, []))):
        others += by_kind.pop(_BINARY, [])  # other files that have such names
    if len(by_kind) > 1:
        raise SourceError(f"{name}: files of several kinds ({', '.join(by_kind)}): build a store of each, by a pattern")
    if not by_kind:
        archive = next((file.path for file in files if file.path.lower().endswith(_ARCHIVES)), None)
        raise SourceError(
            f"{name}: no image file ({FORMATS}) among {len(files)} files, and no tar,"
            " Parquet or Arrow file, nor any of STL-10 or CIFAR" + (f": unpack {archive} first" if archive else "")
        )
    [(kind, alike)] = by_kind.items()
    _warn_of_parts([file.key for file in alike])
    list_kind, known_endings = _KINDS[kind]
    listed = list_kind(name, alike) if kind != "tar" else images.list_tars(name, alike, known)
    unexpected = [file.key for file in others if not file.path.endswith(known_endings)]
    foreign, beside = accompanies([file.key for file in alike], unexpected)
    return replace(listed, left_out=(*listed.left_out, *foreign), passed_over=(*listed.passed_over, *beside))


def _warn_of_parts(keys: Sequence[str]) -> None:
    """Warn where the names of tars or tables, or of their folders, say that they are parts of a data set."""
    words = (set(re.split(r"[^a-z]+", key.lower())) for key in keys)
    found = sorted({word for some in words for word in some & SPLITS})
    if len(found) > 1:
        log.warning("files of %s go into one store: if these are parts, build a store of each", ", ".join(found))


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
