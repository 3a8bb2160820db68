"""The files that a path, URI or pattern stands for, local or remote; each is opened where it is read."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import itertools
import math
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

import pyarrow as pa
import xxhash
from pyarrow import fs

from ssl_dist.errors import SourceError
from ssl_dist.store.decode import refuse_large

_WILDCARD = re.compile(r"[*?\[]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})", re.ASCII)
_MAX_FILES = 1_000_000  # files that the braces of a pattern may stand for
# what file systems, file managers and archivers leave between a person's files, in lower case
_OF_THE_SYSTEM = frozenset(
    {"__macosx", "@eadir", "thumbs.db", "desktop.ini", "$recycle.bin", "#recycle", "@recycle", "#snapshot"}
    | {"system volume information", "lost+found", "icon\r", "ehthumbs.db", "ehthumbs_vista.db", "picasa.ini"}
)
_MAX_RATIO, _SLACK_BYTES = 50, 8 << 20


def max_unpacked_bytes(num_bytes: int) -> int:
    """Return the most bytes that a compressed file of ``num_bytes`` may unpack to.

    Encoded images hardly compress any further; a file of kilobytes that unpacks to gigabytes would fill the memory.
    """
    return _MAX_RATIO * num_bytes + _SLACK_BYTES


class File(NamedTuple):
    """One file of a source. It can be pickled, so that another process can read it.

    Attributes:
        filesystem: None: the local one.
        path: path within the filesystem.
        key: name in the store: the path relative to the folder that the pattern names without a wildcard.
        stamp: the file's size and time of modification.
        is_regular: False for a pipe, socket or device, which may have no end or block when it is opened.
    """

    filesystem: fs.FileSystem | None
    path: str
    key: str
    stamp: str
    is_regular: bool = True

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.path).name

    def open(self) -> IO[bytes]:
        """Open the file for reading and seeking; raise OSError if that fails."""
        if self.filesystem is None:
            return Path(self.path).open("rb")
        return self.filesystem.open_input_file(self.path)  # type: ignore[no-any-return]

    def read(self) -> bytes:
        """Read the whole file.

        Raises:
            Unreadable: the file is too large for an image.
            OSError: it cannot be read.
        """
        with self.open() as file:
            refuse_large(file.seek(0, os.SEEK_END))
            file.seek(0)
            return file.read()


@contextlib.contextmanager
def open_source_file(file: File, kind: str) -> Iterator[IO[bytes]]:
    """Open a file, and turn what goes wrong while it is read into a SourceError that names it and its ``kind``."""
    try:
        with file.open() as content:
            yield content
    except SourceError:
        raise
    except (OSError, EOFError, ValueError, pa.ArrowException, MemoryError) as error:  # MemoryError: a damaged length
        raise SourceError(f"{file.path} is not a complete {kind} ({str(error) or type(error).__name__})") from None


def local_file(path: str, key: str) -> File:
    """Describe a file of this machine; one that cannot be read is described as well."""
    try:
        status = os.stat(path)
    except OSError as error:
        return File(None, path, key, str(error))
    return File(None, path, key, f"{status.st_size} {status.st_mtime_ns}", stat.S_ISREG(status.st_mode))


def sibling(file: File, name: str) -> File | None:
    """Return the file called ``name`` in the same folder, or None if there is none.

    Raises:
        SourceError: the folder cannot be reached.
    """
    path = PurePosixPath(file.path).with_name(name).as_posix()
    filesystem = file.filesystem or fs.LocalFileSystem()
    try:
        info = filesystem.get_file_info(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise SourceError(f"{path} cannot be reached ({error})") from None
    return _describe(filesystem, info, name) if info.type == fs.FileType.File else None


def fingerprint(files: Iterable[File]) -> str:
    """Return 16 hexadecimal digits that change with the files' names, sizes and times of modification."""
    digest = xxhash.xxh3_64()
    for file in files:
        digest.update(f"{file.path}\n{file.key}\n{file.stamp}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def hidden_part(key: str) -> str | None:
    """Return the beginning of a path up to its first hidden name; None: no name in it is hidden.

    Hidden are names that begin with a dot (``.git``, ``.ipynb_checkpoints``, ``._photo.jpg``), and those of files and
    folders that systems make for themselves (``__MACOSX``, ``@eaDir``, ``Thumbs.db``).
    """
    names = key.split("/")
    for number, name in enumerate(names, 1):
        if (name.startswith(".") and name not in (".", "..")) or name.lower() in _OF_THE_SYSTEM:
            return "/".join(names[:number])
    return None


def files_below(folder: Path) -> list[File]:
    """List all files below a folder, sorted; links to folders are followed, but no folder is entered twice.

    A folder in its own place comes before links to it. Hidden folders and links to folders that are listed elsewhere
    are not entered; they are listed as if they were files.

    Raises:
        SourceError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise SourceError(f"{error.filename}: {error.strerror}")

    keys, links, seen = list[str](), [os.fspath(folder)], set[str]()
    while links:
        link = links.pop(0)
        if os.path.realpath(link) in seen:
            keys.append(Path(link).relative_to(folder).as_posix())
            continue
        found = list[str]()
        for root, folders, files in os.walk(link, onerror=refuse):
            seen.add(os.path.realpath(root))
            hidden = list(filter(hidden_part, folders))
            places = {name: os.path.join(root, name) for name in folders if name not in hidden}
            linked = [name for name, path in places.items() if os.path.islink(path) or os.path.realpath(path) in seen]
            folders[:] = [name for name in places if name not in linked]
            keys += [(Path(root) / name).relative_to(folder).as_posix() for name in (*files, *hidden)]
            found += [places[name] for name in linked]
        links += sorted(found)
    return [local_file(str(folder / key), key) for key in sorted(keys)]


def is_pattern(text: str) -> bool:
    """Return whether a text is a URI or has wildcards or braces, so that it is not a plain local path."""
    return "://" in text or bool(_WILDCARD.search(text) or _BRACES.search(text))


def expand_pattern(pattern: str) -> list[File]:
    """List the files that a pattern stands for: in the order of its braces, and sorted where wildcards choose.

    Args:
        pattern: a path or URI (s3://, gs://, file:// ...). It may have ``{000..127}`` and ``{a,b}``; ``*``, ``?`` and
            ``[...]`` within a name; and ``**`` as a name, for any number of folders. In a URI, ``?`` begins the
            options. A folder stands for all files below it. A local file or folder that has the name of a pattern, such
            as ``a[1]``, is taken as it stands, also at the beginning of a longer pattern. A file's key is its path
            behind the names before the first brace or wildcard: ``photos/{cat,dog}/*`` has ``cat/0.png``.

    Raises:
        SourceError: the pattern stands for no file, or its folder cannot be reached.
    """
    files: dict[str, File] = {}
    there, rest = _split_at_existing(pattern)
    brace = _BRACES.search(rest)
    num_plain = rest[: brace.start()].count("/") if brace else None  # names, of a URI with its scheme, before the brace
    for expanded in _expand_braces(rest, pattern):
        matches = sorted(_match_files(there, expanded, num_plain), key=lambda file: file.path)
        if not matches:
            of_pattern = f" (of {pattern})" if expanded != rest else ""
            hint = (
                "; it stands for folders: name them without the wildcard, or their files"
                if _is_of_folders(there + expanded)
                else ""
            )
            raise SourceError(f"{there}{expanded}: no such file{of_pattern}{hint}")
        files |= {file.path: file for file in matches}
    return list(files.values())


def _is_of_folders(pattern: str) -> bool:
    return "://" not in pattern and any(map(os.path.isdir, glob.iglob(pattern)))


def _split_at_existing(pattern: str) -> tuple[str, str]:
    """Split a pattern behind the names that are there as they stand; of a URI, none is looked up."""
    names, there = pattern.split("/"), 0
    if "://" not in pattern:
        while there < len(names) and os.path.exists("/".join(names[: there + 1]) or "/"):
            there += 1
    head = "/".join(names[:there])
    return (head, "") if there == len(names) else (f"{head}/" if there else "", "/".join(names[there:]))


def _expand_braces(text: str, pattern: str) -> Iterator[str]:
    """Replace each brace in the text, a part of a pattern, by each of its choices, of which the last changes first."""
    parts = _BRACES.split(text)  # text, what is inside braces, text, ...
    choices = [_brace_choices(pattern, part) if number % 2 else [part] for number, part in enumerate(parts)]
    if math.prod(map(len, choices)) > _MAX_FILES:
        raise SourceError(f"{pattern}: its braces stand for more than {_MAX_FILES:,} files")
    return map("".join, itertools.product(*choices))


def _brace_choices(pattern: str, text: str) -> list[str]:
    if not (numbers := _RANGE.fullmatch(text)):
        return text.split(",")
    first, last = int(numbers[1]), int(numbers[2])
    if not first <= last < first + _MAX_FILES:
        raise SourceError(f"{pattern}: {{{text}}} must go from a smaller to a larger number, by at most {_MAX_FILES:,}")
    return [f"{number:0{len(numbers[1])}d}" for number in range(first, last + 1)]


def _match_files(there: str, pattern: str, num_plain: int | None) -> Iterator[File]:
    """Yield the files that a pattern without braces stands for, behind a beginning that is taken as it stands.

    Args:
        num_plain: number of its names that stood before the first brace; those behind are part of the keys. None:
            there was no brace.
    """
    folder, wildcards = _split_at_wildcard(pattern)
    plain = folder.partition("?")[0] if "://" in folder else folder
    above = "/".join(filter(None, plain.split("/")[num_plain:])) if num_plain is not None else ""
    folder = there + folder
    filesystem, base = _resolve(folder)
    try:
        if not wildcards:
            info = filesystem.get_file_info(base)
            if info.type == fs.FileType.File:
                yield _describe(filesystem, info, above or info.base_name)
            if info.type != fs.FileType.Directory:
                return
        names = (wildcards or "**").split("/")
        parts = [None if name == "**" else re.compile(fnmatch.translate(name)) for name in names]
        for info in filesystem.get_file_info(fs.FileSelector(base, recursive=True, allow_not_found=True)):
            key = info.path[len(base) :].lstrip("/")
            if info.type == fs.FileType.File and _matches(parts, key):
                yield _describe(filesystem, info, f"{above}/{key}" if above else key)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise SourceError(f"{there}{pattern} cannot be reached ({error})") from None


def _split_at_wildcard(pattern: str) -> tuple[str, str]:
    """Split a pattern before the first name that has a wildcard; a URI's options stay with the first part."""
    scheme, separator, path = pattern.rpartition("://")
    path, mark, options = path.partition("?") if separator else (path, "", "")
    names = path.split("/")
    plain = list(itertools.takewhile(lambda name: not _WILDCARD.search(name), names))
    return scheme + separator + "/".join(plain) + mark + options, "/".join(names[len(plain) :])


def _resolve(folder: str) -> tuple[fs.FileSystem, str]:
    """Return the filesystem of a folder, and its path there."""
    if "://" not in folder:
        return fs.LocalFileSystem(), str(Path(folder or ".").absolute())
    try:
        return fs.FileSystem.from_uri(folder)  # type: ignore[no-any-return]
    except (OSError, ValueError, pa.ArrowException) as error:
        raise SourceError(f"{folder} is not a place that can be read ({error})") from None


def _describe(filesystem: fs.FileSystem, info: fs.FileInfo, key: str) -> File:
    is_local = isinstance(filesystem, fs.LocalFileSystem)
    return File(None if is_local else filesystem, info.path, key, f"{info.size} {info.mtime_ns}")


def _matches(parts: Sequence[re.Pattern[str] | None], path: str) -> bool:
    """Return whether a path has these names in turn; None stands for any number of folders.

    Each name of the path is compared with each part at most once, so that every pattern ends in bounded time.
    """
    names = path.split("/")
    lengths = {0}  # of the beginnings of the path that the parts so far may stand for
    for part in parts:
        if part is None:
            lengths = set(range(min(lengths, default=len(names) + 1), len(names) + 1))
        else:
            lengths = {length + 1 for length in lengths if length < len(names) and part.match(names[length])}
    return len(names) in lengths
