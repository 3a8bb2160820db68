"""The cache of downloaded shards: a folder of limited size that all processes of this machine share.

    CACHE/
      XXH3-BYTES.arrow    a whole shard, named by its checksum, so that stores share equal shards and a store that has
                          grown keeps its old ones; its modification time is that of its last use
      XXH3-BYTES.part     a shard that is being downloaded
      lock                locked by the process that counts bytes, evicts shards or reserves room

A process keeps a shared lock on each shard while it uses it (see ``LockedShard``). A locked file is never evicted, so
the sizes of the files add up to the disk space in use. A process that downloads has an exclusive lock on its ``.part``
file. Locks end with the process that holds them, so an unlocked ``.part`` file was left by a dead process; it is
removed the next time that room is needed.
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

DEFAULT_CACHE_GB = 20.0


class LockedShard(io.FileIO):
    """An open shard with a shared lock, so that no process evicts it.

    The lock belongs to the open file, which memory maps of it keep open: it lasts until this object, all maps and all
    arrays over them are gone.
    """

    def __del__(self) -> None:
        self.close()


class NoRoom(Exception):
    """All shards in the cache are in use. The fetcher adds advice to its message and raises it as ``StoreError``."""


class Busy(Exception):
    """Another process is downloading the shard."""


def cache_folder(setting: str | os.PathLike[str] | None) -> Path:
    """Return the absolute folder that the setting ``data.cache`` names; None: one in the user's cache directory.

    Raises:
        StoreError: the home directory is needed and the user has none.
    """
    try:
        if setting:
            return Path(setting).expanduser().absolute()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssl_dist"
    except RuntimeError as error:
        raise StoreError(f"data.cache {setting or ''} ({error}): set it to a folder's full path") from None


class Cache:
    """A shared folder of shards. Any thread of any process may call any method at any time.

    Args:
        folder: on a disk of this machine; see ``cache_folder``. The first download creates it.
        limit_gb: upper bound of its size, in 1e9 bytes.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, limit_gb: float) -> None:
        self._setting, self.limit_bytes = folder, int(limit_gb * 1e9)

    @property
    def folder(self) -> Path:
        """The absolute path; raises StoreError as ``cache_folder`` does."""
        return cache_folder(self._setting)

    def find(self, entry: ShardEntry) -> LockedShard | None:
        """Open a shard; return None if it is not in the cache."""
        path = self._path(entry)
        while True:
            try:
                file = LockedShard(path)
                fcntl.flock(file, fcntl.LOCK_SH)
                status = os.fstat(file.fileno())
                if not status.st_nlink:  # it was evicted before it was locked
                    continue
                if status.st_size != entry.bytes:  # something has changed the file
                    path.unlink(missing_ok=True)
                    continue
                os.utime(file.fileno())
                return file
            except FileNotFoundError:
                return None
            except OSError as error:
                raise self._error(error) from None

    def fetch(self, entry: ShardEntry, download: Callable[[IO[bytes]], None], *, wait: bool = True) -> LockedShard:
        """Open a shard; download it first if it is missing. If several processes ask at once, only one downloads.

        Args:
            download: writes the shard's bytes from the beginning of a file, and verifies them.
            wait: whether to wait while another process downloads the shard, or to raise Busy.

        Raises:
            NoRoom, Busy, StoreError, and whatever ``download`` raises. No partial file stays in the cache.
        """
        try:
            while (file := self.find(entry)) is None:
                with self._partial_file(entry, wait) as partial:
                    if partial is None or self._path(entry).exists():  # another process has downloaded it
                        continue
                    self._reserve(partial, entry)
                    download(partial)
                    return self._publish(partial, entry)
            return file
        except OSError as error:
            raise self._error(error) from None

    def discard(self, entry: ShardEntry) -> None:
        """Delete the copy of a shard that turned out to be damaged."""
        self._path(entry).unlink(missing_ok=True)

    def _path(self, entry: ShardEntry) -> Path:
        return self.folder / f"{entry.xxh3}-{entry.bytes}.arrow"

    def _partial_path(self, entry: ShardEntry) -> Path:
        return self._path(entry).with_suffix(".part")

    @contextlib.contextmanager
    def _partial_file(self, entry: ShardEntry, wait: bool) -> Iterator[IO[bytes] | None]:
        """Open and lock the file to download to; yield None if another process was downloading and has ended."""
        path = self._partial_path(entry)
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():  # otherwise a thread that looks for room could take the new file for a dead process'
            file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b")
            is_ours = _lock_exclusively(file)
        with file:
            if not is_ours:
                if not wait:
                    raise Busy
                fcntl.flock(file, fcntl.LOCK_SH)  # returns when the other process has succeeded or failed
                yield None
                return
            if not _is_at(path, file):
                yield None
                return
            try:
                yield file
            finally:
                if _is_at(path, file):  # it was not published
                    path.unlink()

    def _reserve(self, partial: IO[bytes], entry: ShardEntry) -> None:
        """Allocate disk space for the whole shard; evict the least recently used shards until it fits."""
        if entry.bytes > self.limit_bytes:
            raise StoreError(
                f"data.cache_gb {self.limit_bytes / 1e9:g} is less than the {entry.bytes / 1e9:.3g} GB of {entry.file}:"
                " raise it to several shards"
            )
        with self._locked():
            partial.truncate(0)  # a dead process may have left bytes in it
            files = self._other_files(self._partial_path(entry))
            excess = sum(size for _, size, _ in files) + entry.bytes - self.limit_bytes
            for path, size, _ in sorted(files, key=lambda one: one[2]):
                if excess <= 0:
                    break
                excess -= size if _evict(path) else 0
            if excess > 0:
                raise NoRoom(
                    f"{self.folder} may hold {self.limit_bytes / 1e9:g} GB and all of it is in use, but a shard of"
                    f" {entry.bytes / 1e9:.3g} GB is needed"
                )
            os.posix_fallocate(partial.fileno(), 0, entry.bytes)

    def _other_files(self, excluded: Path) -> list[tuple[Path, int, int]]:
        """List path, bytes and time of last use of every file but one; remove the partial files of dead processes.

        Partial files of living processes have their final size from the beginning.
        """
        files = []
        for path in self.folder.iterdir():
            if path.suffix == ".part" and path != excluded and _evict(path):
                continue
            if path.suffix in (".arrow", ".part") and path != excluded:
                with contextlib.suppress(FileNotFoundError):  # its download has just failed
                    status = path.stat()
                    files.append((path, status.st_size, status.st_mtime_ns))
        return files

    def _publish(self, partial: IO[bytes], entry: ShardEntry) -> LockedShard:
        """Rename a complete partial file to its final name, and swap its exclusive lock for a shared one."""
        partial.flush()
        os.fsync(partial.fileno())
        with self._locked():  # otherwise it could be evicted between the two locks
            self._partial_path(entry).rename(self._path(entry))
            fcntl.flock(partial, fcntl.LOCK_SH)
        return LockedShard(os.dup(partial.fileno()))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _error(self, error: OSError) -> StoreError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StoreError(
                f"the disk of data.cache {self.folder} is full: set data.cache_gb (now {self.limit_bytes / 1e9:g}) to"
                " the room it has, or data.cache to another disk"
            )
        return StoreError(f"data.cache {self.folder} cannot be used ({error}): set it to a folder of this machine")


def _lock_exclusively(file: IO[bytes]) -> bool:
    """Lock an open file if no other has locked it; return whether it is locked now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, file: IO[bytes]) -> bool:
    """Return whether ``path`` still names the open file."""
    try:
        return path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False


def _evict(path: Path) -> bool:
    """Remove a file unless a process has locked it; return whether it was removed."""
    try:
        with path.open("rb") as file:
            if not (_lock_exclusively(file) and _is_at(path, file)):
                return False
            path.unlink()
    except FileNotFoundError:
        return False
    return True
