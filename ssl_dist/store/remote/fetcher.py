"""The shards of a remote store as open local files: downloaded when touched, or ahead of that when announced."""

from __future__ import annotations

import itertools
import logging
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import IO

from ssl_dist.errors import SslDistError, StoreError
from ssl_dist.store.remote.bucket import Bucket, Stopped
from ssl_dist.store.remote.cache import Busy, Cache, LockedShard, NoRoom
from ssl_dist.store.remote.prefetch import Prefetcher
from ssl_dist.store.schema import ShardEntry

_ROOM_S = 120.0  # how long to wait until other processes release shards of a full cache
_POLL_S = 0.05

log = logging.getLogger(__name__)


class Fetcher:
    """Opens the shards of a remote store, which a shared cache on this machine holds.

    No process evicts a shard that this one has open. A shard is released when ``prepare`` does not name it, or when
    another shard needs its room. ``on_release`` is then called with the shard's number, to drop every other reference
    to the open file.

    Attributes:
        cache: the cache that holds the shards.
        num_fetched: number of shards that this process has downloaded.
        num_waits: how often a shard that was touched was not in the cache yet.
    """

    def __init__(
        self, bucket: Bucket, entries: tuple[ShardEntry, ...], cache: Cache, on_release: Callable[[int], None]
    ) -> None:
        self._bucket, self._entries, self.cache = bucket, entries, cache
        self._on_release = weakref.WeakMethod(on_release)  # a method of the object that owns this one
        self.num_fetched = self.num_waits = 0
        self._lock = threading.RLock()
        self._files: OrderedDict[int, LockedShard] = OrderedDict()  # the most recently used last
        self._needed_now, self._needed = frozenset[int](), frozenset[int]()
        self._prefetcher: Prefetcher | None = None

    def open(self, number: int) -> LockedShard:
        """Open a shard; download it first if it is not in the cache.

        Raises:
            StoreError: it cannot be downloaded, or the cache has no room for it.
            StoreDamaged: it differs from its checksum.
        """
        began = time.monotonic()
        while True:
            try:
                return self._open(number)
            except NoRoom as error:
                if not self._release_oldest():
                    if time.monotonic() - began > _ROOM_S:
                        raise StoreError(f"{error}: raise data.cache_gb, or lower data.window") from None
                    time.sleep(_POLL_S)  # another process may release its shards soon

    def open_together(self, numbers: Sequence[int]) -> list[LockedShard] | None:
        """Open several shards at once; return None if the cache has no room for all. Raises as ``open`` does."""
        if sum(self._entries[number].bytes for number in numbers) > self.cache.limit_bytes:
            return None
        files = list[LockedShard]()
        while len(files) < len(numbers):
            try:
                files.append(self._open(numbers[len(files)]))
            except NoRoom:
                if not self._release_oldest(keep=numbers):  # theirs would be downloaded once more
                    return None
        return files

    def _open(self, number: int) -> LockedShard:
        with self._lock:
            if number in self._files:
                self._files.move_to_end(number)
                return self._files[number]
        file = self.cache.find(self._entries[number])
        if not file:
            with self._lock:
                self.num_waits += 1
            file = self._fetch(number, wait=True)
        with self._lock:
            return self._files.setdefault(number, file)

    def prepare(self, now: Collection[int], soon: Collection[int]) -> None:
        """Announce the shards that are needed: release all others, and fetch these in the background, ``now`` first.

        Of ``soon``, only those are fetched that fit the cache beside ``now``. Otherwise one of them could take the room
        of a shard that is used before it, and would be downloaded twice.
        """
        with self._lock:
            needed = frozenset((*now, *soon))
            changed = needed != self._needed or not needed  # if none is needed, some may still have been touched
            self._needed_now, self._needed = frozenset(now), needed
            for number in set(range(len(self._entries))) - needed if changed else ():
                self._release(number)
            wanted = dict.fromkeys((*now, *soon))
            sizes = itertools.accumulate(self._entries[number].bytes for number in wanted)
            fitting = [number for number, size in zip(wanted, sizes, strict=True) if size <= self.cache.limit_bytes]
            missing = [number for number in dict.fromkeys((*now, *fitting)) if number not in self._files]
            if missing:
                self._prefetcher = self._prefetcher or Prefetcher(self._fetch_ahead)
                self._prefetcher.request(missing, retry_refused=changed)

    def release(self) -> None:
        """Close every shard, so that other stores can use the room in the cache."""
        self.prepare((), ())

    def is_open(self, number: int) -> bool:
        """Return whether this process has the shard open."""
        return number in self._files

    def damaged_batches(self, number: int) -> list[int]:
        """Verify a shard in the bucket, as ``Bucket.damaged_batches`` does."""
        return self._bucket.damaged_batches(self._entries[number])

    def discard(self, number: int) -> None:
        """Delete a shard whose copy in the cache was damaged: the next use downloads it again."""
        with self._lock:
            self._release(number)
            self.cache.discard(self._entries[number])

    def _fetch(self, number: int, *, wait: bool, stop: threading.Event | None = None) -> LockedShard:
        def download(file: IO[bytes]) -> None:
            self._bucket.download(self._entries[number], file, stop)
            with self._lock:
                self.num_fetched += 1

        return self.cache.fetch(self._entries[number], download, wait=wait)

    def _release(self, number: int) -> None:
        self._files.pop(number, None)
        if on_release := self._on_release():
            on_release(number)

    def _release_oldest(self, keep: Collection[int] = ()) -> bool:
        """Release the shard whose last use is longest ago, one that is needed now only if there is no other.

        Args:
            keep: shards that are not released.

        Returns:
            False if no other shard was open.
        """
        with self._lock:
            others = (number for number in self._files if number not in keep)
            number = min(others, key=self._needed_now.__contains__, default=None)  # the oldest of equals
            if number is None:
                # a thread may have reopened one that another released
                for other in set(range(len(self._entries))).difference(keep):
                    self._release(other)
                return False
            self._release(number)
            return True

    def _fetch_ahead(self, number: int, stop: threading.Event) -> bool:
        """Fetch a shard in a background thread; False means that only a new ``prepare`` makes a retry worthwhile."""
        with self._lock:
            if number not in self._needed or number in self._files:
                return True
        try:
            file = self._fetch(number, wait=False, stop=stop)
        except (Busy, Stopped):  # if another process fetches it, the next ``prepare`` or use will find it
            return True
        except NoRoom:
            return False
        except SslDistError as error:  # the use of the shard will raise it
            log.debug("not fetched ahead: %s", error)
            return False
        with self._lock:
            if number in self._needed:
                self._files.setdefault(number, file)
        return True
