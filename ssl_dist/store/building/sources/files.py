"""Files by a pattern: local paths and URIs alike, opened where they are read."""

from __future__ import annotations

import contextlib
import fnmatch
import itertools
import math
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

import pyarrow as pa
import xxhash
from pyarrow import fs

from ssl_dist.errors import SourceError
from ssl_dist.store.decode import refuse_large

_GLOB = re.compile(r"[*?\[]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})", re.ASCII)
_MOST_BRACES = 1_000_000  # files that braces may stand for
_RATIO, _SLACK_BYTES = 50, 8 << 20


def most_unpacked(num_bytes: int) -> int:
    """Bytes that a file of so many may stand for where it is compressed: images hardly compress once more, and
    kilobytes that stand for gigabytes would take the memory, or the day."""
    return _RATIO * num_bytes + _SLACK_BYTES


class File(NamedTuple):
    """One file; pickles, so that a process which needs its bytes reads them.

    Attributes:
        filesystem: None: the local one.
        path: within the filesystem.
        key: its name in a store: the path below the folder that the pattern has in full.
        stamp: its size and when it was last written.
        is_regular: False: a pipe, socket or device, which may have no end, or wait for ever to be opened.
    """

    filesystem: fs.FileSystem | None
    path: str
    key: str
    stamp: str
    is_regular: bool = True

    def open(self) -> IO[bytes]:
        """For reading; can seek. Raises OSError."""
        if self.filesystem is None:
            return Path(self.path).open("rb")
        return self.filesystem.open_input_file(self.path)  # type: ignore[no-any-return]

    def read(self) -> bytes:
        """All of it. Raises OSError; Unreadable: it is too large for an image."""
        with self.open() as file:
            refuse_large(file.seek(0, os.SEEK_END))
            file.seek(0)
            return file.read()


@contextlib.contextmanager
def reading(file: File, kind: str) -> Iterator[IO[bytes]]:
    """The opened file; what goes wrong while it is read is one SourceError that names it and the kind it should be."""
    try:
        with file.open() as content:
            yield content
    except SourceError:
        raise
    except (OSError, EOFError, ValueError, pa.ArrowException, MemoryError) as error:  # a length that is damaged, too
        raise SourceError(f"{file.path} is not a whole {kind} ({str(error) or type(error).__name__})") from None


def local(path: str, key: str) -> File:
    """A file of this machine, which may turn out not to be readable."""
    try:
        found = os.stat(path)
    except OSError as error:
        return File(None, path, key, str(error))
    return File(None, path, key, f"{found.st_size} {found.st_mtime_ns}", stat.S_ISREG(found.st_mode))


def neighbour(file: File, name: str) -> File | None:
    """The file of that name in the same folder; None: there is none.

    Raises:
        SourceError: its place cannot be reached.
    """
    path = PurePosixPath(file.path).with_name(name).as_posix()
    filesystem = file.filesystem or fs.LocalFileSystem()
    try:
        info = filesystem.get_file_info(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise SourceError(f"{path} cannot be reached ({error})") from None
    return _found(filesystem, info, name) if info.type == fs.FileType.File else None


def fingerprint(files: Iterable[File]) -> str:
    """Another one for files of other names, sizes or times of writing; 16 hexadecimal digits."""
    digest = xxhash.xxh3_64()
    for file in files:
        digest.update(f"{file.path}\n{file.key}\n{file.stamp}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def is_pattern(text: str) -> bool:
    """Is it more than the path of one local file or folder?"""
    return "://" in text or bool(_GLOB.search(text) or _BRACES.search(text))


def expand(pattern: str) -> list[File]:
    """The files that a pattern stands for, in the order of its braces, each part of it sorted.

    Args:
        pattern: a path or URI (s3://, gs://, file:// ...) with ``{000..127}`` and ``{a,b}``, with ``*``, ``?`` and
            ``[...]`` within a name, and ``**`` as a name for any folders (in a URI, ``?`` begins its options). A folder
            stands for all files below it.

    Raises:
        SourceError: it stands for no file, or its place cannot be reached.
    """
    found: dict[str, File] = {}
    for one in _braced(pattern):
        matched = sorted(_matching(one), key=lambda file: file.path)
        if not matched:
            raise SourceError(f"{one}: no such file" + (f" (of {pattern})" if one != pattern else ""))
        found |= {file.path: file for file in matched}
    return list(found.values())


def _braced(pattern: str) -> Iterator[str]:
    """What the braces stand for, the last changing first; braces do not nest."""
    parts = _BRACES.split(pattern)  # text, what is inside braces, text, ...
    choices = [_choices(pattern, part) if number % 2 else [part] for number, part in enumerate(parts)]
    if math.prod(map(len, choices)) > _MOST_BRACES:
        raise SourceError(f"{pattern}: its braces stand for more than {_MOST_BRACES:,} files")
    return map("".join, itertools.product(*choices))


def _choices(pattern: str, inside: str) -> list[str]:
    if not (numbers := _RANGE.fullmatch(inside)):
        return inside.split(",")
    first, last = int(numbers[1]), int(numbers[2])
    if not first <= last < first + _MOST_BRACES:
        raise SourceError(f"{pattern}: {{{inside}}} goes from the smaller to the larger, over at most {_MOST_BRACES:,}")
    return [f"{number:0{len(numbers[1])}d}" for number in range(first, last + 1)]


def _matching(pattern: str) -> Iterator[File]:
    folder, rest = _split(pattern)
    filesystem, base = _place(folder)
    try:
        if not rest:
            info = filesystem.get_file_info(base)
            if info.type == fs.FileType.File:
                yield _found(filesystem, info, info.base_name)
            if info.type != fs.FileType.Directory:
                return
        glob = _Glob(rest or "**")
        for info in filesystem.get_file_info(fs.FileSelector(base, recursive=True, allow_not_found=True)):
            key = info.path[len(base) :].lstrip("/")
            if info.type == fs.FileType.File and glob.matches(key):
                yield _found(filesystem, info, key)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise SourceError(f"{pattern} cannot be reached ({error})") from None


def _split(pattern: str) -> tuple[str, str]:
    """What stands before the first name with a wildcard, and the rest. In a URI ``?`` begins its options."""
    scheme, found, path = pattern.rpartition("://")
    path, mark, options = path.partition("?") if found else (path, "", "")
    parts = path.split("/")
    plain = list(itertools.takewhile(lambda part: not _GLOB.search(part), parts))
    return scheme + found + "/".join(plain) + mark + options, "/".join(parts[len(plain) :])


def _place(folder: str) -> tuple[fs.FileSystem, str]:
    if "://" not in folder:
        return fs.LocalFileSystem(), str(Path(folder or ".").absolute())
    try:
        return fs.FileSystem.from_uri(folder)  # type: ignore[no-any-return]
    except (OSError, ValueError, pa.ArrowException) as error:
        raise SourceError(f"{folder} is not a place that can be read ({error})") from None


def _found(filesystem: fs.FileSystem, info: fs.FileInfo, key: str) -> File:
    here = isinstance(filesystem, fs.LocalFileSystem)
    return File(None if here else filesystem, info.path, key, f"{info.size} {info.mtime_ns}")


class _Glob:
    """Names with wildcards, of which ``**`` is any number of folders. Each name is matched once at most with each part,
    so that no pattern takes a time without end."""

    def __init__(self, pattern: str) -> None:
        self._parts = [None if part == "**" else re.compile(fnmatch.translate(part)) for part in pattern.split("/")]

    def matches(self, path: str) -> bool:
        reached = self._after({0})
        for name in path.split("/"):
            reached = self._after({next_part for part in reached for next_part in self._past(part, name)})
        return len(self._parts) in reached

    def _past(self, part: int, name: str) -> Iterator[int]:
        """Where a name leads from a part."""
        if part == len(self._parts):
            return
        expression = self._parts[part]
        if expression is None:
            yield part
        elif expression.match(name):
            yield part + 1

    def _after(self, reached: set[int]) -> set[int]:
        """With what lies behind ``**``, which may be no folder."""
        for part, expression in enumerate(self._parts):
            if part in reached and expression is None:
                reached.add(part + 1)
        return reached
