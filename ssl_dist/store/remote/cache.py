"""A folder of shards from elsewhere, bounded in bytes, that all processes of a machine share.

    CACHE/
      XXH3-BYTES.arrow    a whole shard, named by its checksum: stores that share shards share them here, and a store
                          that has grown finds those that it had. Its time of change is that of its last use.
      XXH3-BYTES.part     one being fetched
      lock                held by who counts, evicts or takes room

Whoever uses a shard has it open (see ``Held``), with a shared lock on it: a file that anyone uses is never evicted, so
what the files add up to is what the disk has to hold. Whoever fetches a shard has an exclusive lock on its part. Locks
are gone with the process that had them; a part that nobody has locked is a dead process', and is removed when room is
needed next.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from ssl_dist.errors import StoreError
from ssl_dist.store.schema import ShardEntry

DEFAULT_GB = 20.0


class Held(io.FileIO):
    """A shard that is in use: the lock is that of the open file, and maps of it have their share in that, so it lasts
    until this, all maps and all arrays on them are gone."""

    def __del__(self) -> None:
        self.close()


class NoRoom(Exception):
    """All of the cache is in use; what it says is for ``StoreError``."""


class Busy(Exception):
    """Another process fetches the shard."""


def folder_of(given: str | os.PathLike[str] | None) -> Path:
    """What ``data.cache`` stands for on this machine, absolute; None: in the user's cache directory.

    Raises:
        StoreError: the user has no home directory, and it is needed.
    """
    try:
        if given:
            return Path(given).expanduser().absolute()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssl_dist"
    except RuntimeError as error:
        raise StoreError(f"data.cache {given or ''} ({error}): set it to a folder of this machine, in full") from None


class Cache:
    """See the module. Every method may be called from any thread and process at any time.

    Args:
        folder: on a disk of this machine, made when a shard is fetched; see ``folder_of``.
        limit_gb: the most that it may hold, in 1e9 bytes.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, limit_gb: float) -> None:
        self._given, self.limit_bytes = folder, int(limit_gb * 1e9)

    @property
    def folder(self) -> Path:
        """Raises StoreError as ``folder_of``."""
        return folder_of(self._given)

    def find(self, entry: ShardEntry) -> Held | None:
        """The shard, if it is here."""
        path = self._path(entry)
        while True:
            try:
                file = Held(path)
                fcntl.flock(file, fcntl.LOCK_SH)
                found = os.fstat(file.fileno())
                if not found.st_nlink:  # evicted before it was locked
                    continue
                if found.st_size != entry.bytes:  # not as it was put here
                    path.unlink(missing_ok=True)
                    continue
                os.utime(file.fileno())
                return file
            except FileNotFoundError:
                return None
            except OSError as error:
                raise self._unwritable(error) from None

    def get(self, entry: ShardEntry, download: Callable[[IO[bytes]], None], *, wait: bool = True) -> Held:
        """The shard, fetched unless it is here; of those who ask for it at one time, one fetches.

        Args:
            download: writes the shard's bytes, checked, from the file's beginning.
            wait: for another process that fetches it; else Busy is raised.

        Raises:
            NoRoom, Busy, StoreError, and what ``download`` raises: then nothing is left of it here.
        """
        try:
            while (found := self.find(entry)) is None:
                with self._part(entry, wait) as part:
                    if part is None or self._path(entry).exists():  # another was quicker
                        continue
                    self._reserve(part, entry)
                    download(part)
                    return self._keep(part, entry)
            return found
        except OSError as error:
            raise self._unwritable(error) from None

    def discard(self, entry: ShardEntry) -> None:
        """Forget a shard that turned out not to be what it was."""
        self._path(entry).unlink(missing_ok=True)

    def _path(self, entry: ShardEntry) -> Path:
        return self.folder / f"{entry.xxh3}-{entry.bytes}.arrow"

    def _part_of(self, entry: ShardEntry) -> Path:
        return self._path(entry).with_suffix(".part")

    @contextlib.contextmanager
    def _part(self, entry: ShardEntry, wait: bool) -> Iterator[IO[bytes] | None]:
        """The file to fetch into, locked; None where another process had it and is done."""
        path = self._part_of(entry)
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise Busy from None
                fcntl.flock(file, fcntl.LOCK_SH)  # until the other has kept it, or given up
                yield None
                return
            if not _is(path, file):
                yield None
                return
            try:
                yield file
            finally:
                if _is(path, file):  # not renamed
                    path.unlink()

    def _reserve(self, part: IO[bytes], entry: ShardEntry) -> None:
        """Take room for the part, and make it first if need be."""
        if entry.bytes > self.limit_bytes:
            raise StoreError(
                f"data.cache_gb {self.limit_bytes / 1e9:g} is less than {entry.file} has, {entry.bytes / 1e9:.3g} GB:"
                " raise it to several shards"
            )
        with self._locked():
            part.truncate(0)  # what a dead process left there
            held = self._held(self._part_of(entry))
            over = sum(size for _, size, _ in held) + entry.bytes - self.limit_bytes
            for path, size, _ in sorted(held, key=lambda one: one[2]):
                if over <= 0:
                    break
                over -= size if _evicted(path) else 0
            if over > 0:
                raise NoRoom(
                    f"{self.folder} is to hold at most {self.limit_bytes / 1e9:g} GB and all of it is in use, where a"
                    f" shard of {entry.bytes / 1e9:.3g} GB is needed"
                )
            os.posix_fallocate(part.fileno(), 0, entry.bytes)

    def _held(self, but: Path) -> list[tuple[Path, int, int]]:
        """Path, bytes and time of last use of every file but one; parts of the dead are removed. Parts of the living
        have their full size from the beginning."""
        held = []
        for path in self.folder.iterdir():
            if path.suffix == ".part" and path != but and _evicted(path):
                continue
            if path.suffix in (".arrow", ".part") and path != but:
                with contextlib.suppress(FileNotFoundError):  # its fetcher gave up
                    found = path.stat()
                    held.append((path, found.st_size, found.st_mtime_ns))
        return held

    def _keep(self, part: IO[bytes], entry: ShardEntry) -> Held:
        """Give a part that is whole its name."""
        part.flush()
        os.fsync(part.fileno())
        with self._locked():  # else it could be evicted between the two locks
            self._part_of(entry).rename(self._path(entry))
            fcntl.flock(part, fcntl.LOCK_SH)
        return Held(os.dup(part.fileno()))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _unwritable(self, error: OSError) -> StoreError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StoreError(
                f"the disk of data.cache {self.folder} is full: set data.cache_gb (now {self.limit_bytes / 1e9:g}) to"
                " what it has room for, or data.cache to another disk"
            )
        return StoreError(f"data.cache {self.folder} cannot be used ({error}): set it to a folder of this machine")


def _is(path: Path, file: IO[bytes]) -> bool:
    try:
        return path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False


def _evicted(path: Path) -> bool:
    """Remove a file that nobody has locked."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is(path, file):
                return False
            path.unlink()
    except (BlockingIOError, FileNotFoundError):
        return False
    return True
