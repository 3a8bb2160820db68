"""The lock of a store that is being built: one process builds at a time, and only the same job resumes a build."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from ssl_dist.errors import ConfigError, StoreError
from ssl_dist.store.schema import MANIFEST, Manifest
from ssl_dist.uris import is_remote

_LOCK_FILE = ".building"  # stays behind when a build dies: it marks the store as unfinished
_SUMMARIES = ".shard-*.json"
_TEMPORARY = (".shard-*.tmp", f"*{MANIFEST}.*.tmp")


def _write_error(store: Path, error: Exception) -> StoreError:
    """Turn a failed write into the error that the user sees."""
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = " (make room, and the same command continues)" if is_full else ""
    return StoreError(f"cannot write a store at {store}: {getattr(error, 'strerror', None) or error}{remedy}")


def local_folder(path: str | os.PathLike[str]) -> Path:
    """Return the path; raise ConfigError if it is a URI."""
    if is_remote(path):
        raise ConfigError(
            f"{path}: a store is built and changed in a local folder; copy it there when complete, {MANIFEST} last"
        )
    return Path(path)


class BuildJob(NamedTuple):
    """What a build makes: a digest of its source and settings, and the number of shards that were there before."""

    digest: str
    old_shards: int

    @property
    def identity(self) -> str:
        """The job as the manifest names it."""
        return f"{self.digest}-{self.old_shards}"


class BuildLock:
    """The lock that a build holds: an open, locked file in the store's folder.

    The file names the job, the process that builds, and when it began. ``store`` is the folder; ``job`` is the job that
    the file named before this process locked it: that of a build which died, or None.
    """

    def __init__(self, store: Path, file: IO[str]) -> None:
        self.store, self._file = store, file
        file.seek(0)
        self.job = _parse_job(file.read())

    def begin(self, job: BuildJob, old: Manifest | None) -> None:
        """Write the job into the lock file, and remove what an earlier build left that this job cannot use.

        Shards of the same job stay. Shards of another job are removed unless the old manifest names them, and so is
        every temporary file.
        """
        if self.job != job:
            self._remove_shards(old)
        _remove(self.store, *_TEMPORARY)
        self._file.seek(0)
        self._file.write(f"{job.digest} {job.old_shards} {os.getpid()}-{time.time_ns()}")
        self._file.truncate()  # last: a kill before it leaves a line whose job can be read
        os.fsync(self._file.fileno())  # other machines see it

    def abandon(self, old: Manifest | None) -> None:
        """Remove all that this build has written, and the folder if there was no store before."""
        self._remove_shards(old)
        _remove(self.store, *_TEMPORARY, _LOCK_FILE)
        if not old:
            with contextlib.suppress(OSError):  # another build has begun there
                self.store.rmdir()

    def _remove_shards(self, old: Manifest | None) -> None:
        """Remove all shards that the old manifest does not name, with all summaries."""
        listed = {shard.file for shard in old.shards} if old else set()
        for path in self.store.glob("shard-*.arrow"):
            if path.name not in listed:
                path.unlink()
        _remove(self.store, _SUMMARIES)


@contextlib.contextmanager
def lock_store(store: Path) -> Iterator[BuildLock]:
    """Lock the store's folder, which is made if it is missing; an error inside leaves the store marked as unfinished.

    Raises:
        StoreError: another process holds the lock, or the folder cannot be written.
    """
    try:
        store.mkdir(parents=True, exist_ok=True)
        with _open_locked(store) as file:
            yield BuildLock(store, file)
            _remove(store, _SUMMARIES, *_TEMPORARY)
            (store / _LOCK_FILE).unlink()
    except OSError as error:
        raise _write_error(store, error) from None


@contextlib.contextmanager
def _open_locked(store: Path) -> Iterator[IO[str]]:
    """Open and lock the lock file; try again if the previous holder deleted it before the lock was ours."""
    path, is_current = store / _LOCK_FILE, False
    while not is_current:
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(f"{store} is being built by another process: wait for it, or choose another") from None
            with contextlib.suppress(FileNotFoundError):
                is_current = os.fstat(file.fileno()).st_ino == path.stat().st_ino
            if is_current:
                yield file


def refuse_other_files(store: Path) -> None:
    """Refuse a folder that has files in it but is neither a store nor an unfinished one.

    Raises:
        StoreError: it is such a folder, or it cannot be read.
    """
    try:
        has_files = store.exists() and any(store.iterdir())
    except OSError as error:
        raise _write_error(store, error) from None
    if has_files and not (store / _LOCK_FILE).exists() and not (store / MANIFEST).exists():
        raise StoreError(f"{store} is not empty and not an unfinished store: choose another destination")


def _remove(store: Path, *patterns: str) -> None:
    for path in itertools.chain.from_iterable(map(store.glob, patterns)):
        path.unlink(missing_ok=True)


def unfinished_job(store: Path) -> BuildJob | None:
    """Return the job of the build that runs in this folder, or that died there."""
    return _parse_job(read_token(store))


def _parse_job(token: str) -> BuildJob | None:
    try:
        digest, old_shards, _ = token.split()
        return BuildJob(digest, int(old_shards))
    except ValueError:  # an empty file, or a torn line
        return None


def read_token(store: Path) -> str:
    """Return the line of the lock file as this machine sees it, which differs for each build; "" if there is none."""
    try:
        return (store / _LOCK_FILE).read_text(encoding="utf-8")
    except OSError:
        return ""
