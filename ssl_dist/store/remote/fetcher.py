"""A store elsewhere, wherever ``pyarrow.fs`` reaches: ``s3://bucket/store``, ``gs://``, ``file://``.

Its manifest is read there; its shards are fetched into a ``Cache`` that all processes of the machine share, when they
are touched, or ahead of that by threads that are told what the coming steps need.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import IO

import pyarrow as pa
import xxhash
from pyarrow import fs

from ssl_dist.errors import SslDistError, StoreDamaged, StoreError
from ssl_dist.store.remote.cache import Busy, Cache, Held, NoRoom
from ssl_dist.store.remote.prefetch import Ahead
from ssl_dist.store.schema import MANIFEST, NO_BATCH, Manifest, ShardEntry
from ssl_dist.uris import is_remote, reason_of, without_secrets

_CHUNK_BYTES = 8 << 20
_ATTEMPTS = 2  # to fetch a shard where the connection fails; in each, Arrow tries S3 anew by itself for minutes
_PAUSE_S = 1.0
_ROOM_S = 120.0  # a process that is a step behind gives its shards back by then
_POLL_S = 0.05

log = logging.getLogger(__name__)


def manifest_at(path: str | os.PathLike[str]) -> Manifest:
    """Of a store in a folder, or at a URI. Raises StoreError as ``Manifest.read``."""
    return Place(os.fspath(path)).manifest() if is_remote(path) else Manifest.read(Path(path))


class Place:
    """The folder of a store at a URI.

    Attributes:
        name: the URI without secrets.
    """

    def __init__(self, uri: str) -> None:
        """
        Raises:
            StoreError: not a URI of a kind that is known.
        """
        self.name = without_secrets(uri).rstrip("/")
        try:
            self._system, base = fs.FileSystem.from_uri(uri)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise StoreError(
                f"{self.name} is not the place of a store ({reason_of(error, uri)}): e.g. s3://bucket/store"
            ) from None
        self._base = base.rstrip("/")

    def manifest(self) -> Manifest:
        """
        Raises:
            StoreError: it cannot be reached, or is none that this version reads.
        """
        try:
            with self._system.open_input_stream(f"{self._base}/{MANIFEST}") as stream:
                content = stream.read()
        except FileNotFoundError:
            raise StoreError(
                f"{self.name} is not a store (no {MANIFEST}): build one on a disk and copy it there, {MANIFEST} last"
            ) from None
        except (OSError, pa.ArrowException) as error:
            raise StoreError(self._unreachable(error)) from None
        return Manifest.parse(content, f"{self.name}/{MANIFEST}")

    def download(self, entry: ShardEntry, file: IO[bytes], stop: threading.Event | None = None) -> None:
        """Write a shard's bytes, which are those of its checksum.

        Raises:
            Busy: it was told to stop.
            StoreError: it cannot be reached, or is not there.
            StoreDamaged: it is not what the manifest says, fetched twice.
            OSError: the file cannot be written.
        """
        failures, wrong = 0, 0
        while True:
            try:
                found = self._copy(entry, file, stop)
            except FileNotFoundError:
                raise StoreError(
                    f"{self.name}/{entry.file} is not there: copy the store again, its {MANIFEST} last"
                ) from None
            except _Unreachable as error:
                failures += 1
                if failures == _ATTEMPTS:
                    raise StoreError(f"{entry.file}: {self._unreachable(error)}") from None
                log.warning("%s/%s: attempt %d of %d failed (%s)", self.name, entry.file, failures, _ATTEMPTS, error)
                time.sleep(_PAUSE_S)
                continue
            if found == entry.xxh3:
                return
            wrong += 1
            if wrong == 2:
                raise StoreDamaged(
                    f"{self.name}/{entry.file} differs from its checksum, fetched twice: copy the file there again"
                )
            log.warning("%s/%s arrived with another checksum; it is fetched once more", self.name, entry.file)

    def damaged(self, entry: ShardEntry) -> list[int]:
        """Record batches of a shard that differ there from their checksums, and NO_BATCH alone if what is around them
        does; a missing shard has them all. Nothing is kept here.

        Raises:
            StoreError: it cannot be reached.
        """
        whole, position, found = xxhash.xxh3_64(), 0, []
        try:
            with self._system.open_input_stream(f"{self._base}/{entry.file}") as stream:
                for index, batch in enumerate(entry.batches):
                    if batch.offset < position or batch.offset + batch.length > entry.bytes:
                        found.append(index)  # of a manifest that someone else wrote
                        continue
                    between, content = stream.read(batch.offset - position), stream.read(batch.length)
                    position = batch.offset + batch.length
                    whole.update(between)
                    whole.update(content)
                    if xxhash.xxh3_64_hexdigest(content) != batch.xxh3:
                        found.append(index)
                while rest := stream.read(_CHUNK_BYTES):
                    whole.update(rest)
        except FileNotFoundError:
            return list(range(len(entry.batches)))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise StoreError(f"{entry.file}: {self._unreachable(error)}") from None
        return found or ([] if whole.hexdigest() == entry.xxh3 else [NO_BATCH])

    def _copy(self, entry: ShardEntry, file: IO[bytes], stop: threading.Event | None) -> str:
        """To the file's beginning; returns the checksum of what came, of which no more than is due is taken."""
        digest, left = xxhash.xxh3_64(), entry.bytes
        file.seek(0)
        try:
            stream = self._system.open_input_stream(f"{self._base}/{entry.file}")
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise _Unreachable(error) from None
        with stream:
            while chunk := _read(stream, min(_CHUNK_BYTES, left + 1)):
                if stop and stop.is_set():
                    raise Busy
                digest.update(chunk)
                left -= len(chunk)
                if left < 0:
                    break
                file.write(chunk)
        return digest.hexdigest() if left == 0 else f"{entry.bytes - left} bytes"

    def _unreachable(self, error: Exception) -> str:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return (
            f"{self.name} cannot be reached ({reason}): check the network and the credentials, which are those that"
            " the AWS and Google libraries find (environment, ~/.aws, ~/.config/gcloud)"
        )


class _Unreachable(Exception):
    """Reading from the other side failed."""


def _read(stream: pa.NativeFile, count: int) -> bytes:
    try:
        content: bytes = stream.read(count)
    except (OSError, pa.ArrowException) as error:
        raise _Unreachable(error) from None
    return content


class Remote:
    """The shards of a store elsewhere, as files of a cache.

    A shard that this process has open stays in the cache. It gives shards back when ``prepare`` no longer names them,
    or when another needs their room; then ``dropped`` is called with their numbers, and who has them open lets go.

    Attributes:
        fetched: how many shards this process has fetched.
        waits: how often one that was touched was not here.
    """

    def __init__(
        self, place: Place, entries: tuple[ShardEntry, ...], cache: Cache, dropped: Callable[[int], None]
    ) -> None:
        self._place, self._entries, self.cache = place, entries, cache
        self._dropped = weakref.WeakMethod(dropped)  # a bound method, of whoever has this
        self.fetched = self.waits = 0
        self._lock = threading.RLock()
        self._files: OrderedDict[int, Held] = OrderedDict()  # the last used last
        self._now, self._kept = frozenset[int](), frozenset[int]()
        self._ahead: Ahead | None = None

    def file(self, number: int) -> Held:
        """A shard, fetched if need be.

        Raises:
            StoreError: it cannot be fetched, or there is no room for it.
            StoreDamaged: it is not what the manifest says.
        """
        began = time.monotonic()
        while True:
            try:
                return self._open(number)
            except NoRoom as error:
                if not self._give_back():
                    if time.monotonic() - began > _ROOM_S:
                        raise StoreError(f"{error}: raise data.cache_gb, or lower data.window") from None
                    time.sleep(_POLL_S)  # another process may be about to go on to other shards

    def together(self, numbers: Sequence[int]) -> list[Held] | None:
        """Shards all at once, if there is room for them. Raises as ``file``."""
        if sum(self._entries[number].bytes for number in numbers) > self.cache.limit_bytes:
            return None
        found = list[Held]()
        while len(found) < len(numbers):
            try:
                found.append(self._open(numbers[len(found)]))
            except NoRoom:
                if not self._give_back():
                    return None
        return found

    def _open(self, number: int) -> Held:
        with self._lock:
            if number in self._files:
                self._files.move_to_end(number)
                return self._files[number]
        found = self.cache.find(self._entries[number])
        if not found:
            with self._lock:
                self.waits += 1
            found = self._get(number, wait=True)
        with self._lock:
            return self._files.setdefault(number, found)

    def prepare(self, now: Collection[int], soon: Collection[int]) -> None:
        """Give back what is in neither, and fetch what is missing, what is needed now first: in threads."""
        with self._lock:
            kept = frozenset((*now, *soon))
            anew = kept != self._kept or not kept  # who needs none may have touched some
            self._now, self._kept = frozenset(now), kept
            for number in set(range(len(self._entries))) - kept if anew else ():
                self._drop(number)
            missing = [number for number in dict.fromkeys((*now, *soon)) if number not in self._files]
            if missing:
                self._ahead = self._ahead or Ahead(self._fetch_ahead)
                self._ahead.want(missing, anew=anew)

    def holds(self, number: int) -> bool:
        """Has this process got it open?"""
        return number in self._files

    def damaged(self, number: int) -> list[int]:
        """As of ``Place``."""
        return self._place.damaged(self._entries[number])

    def discard(self, number: int) -> None:
        """Forget a shard whose file here is not what it was: it is fetched again when it is touched."""
        with self._lock:
            self._drop(number)
            self.cache.discard(self._entries[number])

    def _get(self, number: int, *, wait: bool, stop: threading.Event | None = None) -> Held:
        def download(file: IO[bytes]) -> None:
            self._place.download(self._entries[number], file, stop)
            with self._lock:
                self.fetched += 1

        return self.cache.get(self._entries[number], download, wait=wait)

    def _drop(self, number: int) -> None:
        self._files.pop(number, None)
        if dropped := self._dropped():
            dropped(number)

    def _give_back(self) -> bool:
        """The shard that was used longest ago, those that are needed now last; False: there is none."""
        with self._lock:
            number = min(self._files, key=self._now.__contains__, default=None)  # the first of the least
            if number is None:
                for other in range(len(self._entries)):  # one that a thread opened while another gave it back
                    self._drop(other)
                return False
            self._drop(number)
            return True

    def _fetch_ahead(self, number: int, stop: threading.Event) -> bool:
        """In a thread; False where there is no sense in trying again before other shards are asked for."""
        with self._lock:
            if number not in self._kept or number in self._files:
                return True
        try:
            found = self._get(number, wait=False, stop=stop)
        except Busy:  # another process fetches it: it is found at the next ``prepare``, or when it is touched
            return True
        except NoRoom:
            return False
        except SslDistError as error:  # raised where the shard is touched
            log.debug("not fetched ahead: %s", error)
            return False
        with self._lock:
            if number in self._kept:
                self._files.setdefault(number, found)
        return True
