"""Who makes a store, one process at a time, and what: an unfinished one is gone on with by the same job only."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from ssl_dist.errors import StoreError
from ssl_dist.store.schema import MANIFEST, Manifest

_BUILDING = ".building"  # locked by the process that builds, and says what it builds; stays where it died
_NOTES, _ASIDE = ".shard-*.json", (".shard-*.tmp", f"{MANIFEST}.*.tmp")  # of an unfinished store


def unwritable(store: Path, error: Exception) -> StoreError:
    """What to raise where writing failed."""
    return StoreError(f"cannot write a store at {store}: {getattr(error, 'strerror', None) or error}")


class Job(NamedTuple):
    """What a process builds, and onto how many shards: shards that an unfinished one left are gone on with by the same
    job only."""

    what: str
    onto: int

    @property
    def identity(self) -> str:
        return f"{self.what}-{self.onto}"


class Lock:
    """A store that this process alone makes: a locked file in it, which says what is made and, by a token, by whom."""

    def __init__(self, store: Path, file: IO[str]) -> None:
        self._store, self._file = store, file
        file.seek(0)
        self.job = _job(file.read())

    def begin(self, job: Job, old: Manifest | None) -> None:
        """From here on shards are written; those of another job, which no manifest names, are removed, and what was
        begun and nobody will give a name."""
        if self.job != job:
            _remove_unnamed(self._store, old)
        _remove(self._store, *_ASIDE)
        self._file.seek(0)
        self._file.write(f"{job.what} {job.onto} {os.getpid()}-{time.time_ns()}")
        self._file.truncate()  # after it: a kill between leaves the job that is there to be read
        os.fsync(self._file.fileno())  # other machines see it


@contextlib.contextmanager
def locked(store: Path) -> Iterator[Lock]:
    """The store's folder, made if need be, as this process' own. Left by an error, it stays marked as unfinished.

    Raises:
        StoreError: another process has it, or it cannot be written.
    """
    try:
        store.mkdir(parents=True, exist_ok=True)
        with _lock_file(store) as file:
            yield Lock(store, file)
            _remove(store, _NOTES, *_ASIDE)
            (store / _BUILDING).unlink()
    except BlockingIOError:
        raise StoreError(f"{store} is being built by another process: wait for it, or choose another") from None
    except OSError as error:
        raise unwritable(store, error) from None


@contextlib.contextmanager
def _lock_file(store: Path) -> Iterator[IO[str]]:
    """Locked, and still the file of that name: whoever had it before unlinked it when he was done."""
    path = store / _BUILDING
    while True:
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                same = os.fstat(file.fileno()).st_ino == path.stat().st_ino
            except FileNotFoundError:
                same = False
            if same:
                yield file
                return


def expect_room(store: Path) -> None:
    """Refuse a folder with other things in it.

    Raises:
        StoreError: there are some, or it cannot be read.
    """
    try:
        taken = store.exists() and any(store.iterdir())
    except OSError as error:
        raise unwritable(store, error) from None
    if taken and not (store / _BUILDING).exists() and not (store / MANIFEST).exists():
        raise StoreError(f"{store} is not empty and not an unfinished store: choose another destination")


def _remove_unnamed(store: Path, old: Manifest | None) -> None:
    named = {shard.file for shard in old.shards} if old else set()
    for path in store.glob("shard-*.arrow"):
        if path.name not in named:
            path.unlink()
    _remove(store, _NOTES)


def _remove(store: Path, *patterns: str) -> None:
    for path in itertools.chain.from_iterable(map(store.glob, patterns)):
        path.unlink(missing_ok=True)


def unfinished(store: Path) -> Job | None:
    """What is being built there, or was, by a process that died."""
    return _job(token_of(store))


def _job(token: str) -> Job | None:
    try:
        what, onto, _ = token.split()
        return Job(what, int(onto))
    except ValueError:  # none, new, or torn
        return None


def token_of(store: Path) -> str:
    """Who builds there now, as this machine sees it; nothing where nobody does."""
    try:
        return (store / _BUILDING).read_text(encoding="utf-8")
    except OSError:
        return ""
