"""The record batches of a store: where they lie, and whether they are as they were written."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ssl_dist.errors import StoreDamaged, StoreError
from ssl_dist.store.remote.fetcher import Remote
from ssl_dist.store.schema import NO_BATCH
from ssl_dist.store.shard_reader import RecordBatch, ShardFile

_UNKNOWN, _INTACT, _DAMAGED = range(3)

log = logging.getLogger(__name__)


class Damage(NamedTuple):
    """A record batch whose bytes differ from its checksum; ``rows`` are sample ids [first, one past the last)."""

    shard: str
    batch: int
    rows: tuple[int, int]


class RecordBatches:
    """Record batch ``number`` of a whole store, 0 and up.

    Args:
        name: of the store.
        shards: all of them, in order.
        remote: what fetches them, of a store elsewhere.
        checked: whether each is checked when it is first touched.
        skip: whether whoever asks goes on without those that are damaged.
        num_buffers: of a record batch's images; see ``ShardFile.image_buffers``.

    Attributes:
        starts: int64 ``[batches + 1]``; it has the sample ids [starts[number], starts[number + 1]).
        shard_of: int64 ``[batches]``, numbers of shards.
        buffers: int64 ``[batches, num_buffers]``, where its images are; -1 until ``find``.
    """

    def __init__(
        self,
        name: str,
        shards: Sequence[ShardFile],
        remote: Remote | None,
        *,
        checked: bool,
        skip: bool,
        num_buffers: int,
    ) -> None:
        self._name, self._shards, self._remote, self._skip = name, shards, remote, skip
        counts = [len(shard.entry.batches) for shard in shards]
        rows = [batch.rows for shard in shards for batch in shard.entry.batches]
        self.starts = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])
        self.shard_of = np.repeat(np.arange(len(counts)), counts)
        self._index = np.concatenate([np.arange(count) for count in counts])
        self._state = np.full(len(rows), _UNKNOWN if checked else _INTACT, dtype=np.uint8)
        self.buffers = np.full((len(rows), num_buffers), -1, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._state)

    def located(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sample ids as int64 ``[N]``, and the number of each one's record batch.

        Raises:
            StoreError: an id outside the store.
        """
        ids, end = np.asarray(ids, dtype=np.int64), int(self.starts[-1])
        if ids.size and not ids.view(np.uint64).max() < end:  # what is negative is large then
            raise StoreError(f"{self._name} has samples 0..{end - 1}, asked for {ids.min()}..{ids.max()}")
        return ids, np.searchsorted(self.starts, ids, side="right") - 1

    def of(self, number: int) -> tuple[ShardFile, int]:
        """Its shard, and its number there."""
        return self._shards[self.shard_of[number]], int(self._index[number])

    def rows(self, number: int) -> slice:
        """Its sample ids."""
        return slice(int(self.starts[number]), int(self.starts[number + 1]))

    def find(self, numbers: np.ndarray) -> None:
        """Have their ``buffers``. Raises StoreDamaged where one differs from its checksum."""
        unknown = self.buffers[numbers, 0] < 0
        for number in set(numbers[unknown].tolist()) if unknown.any() else ():
            self.batch(number)

    def intact(self, numbers: np.ndarray) -> np.ndarray:
        """bool, of the shape of ``numbers``."""
        for number in np.unique(numbers[self._state[numbers] == _UNKNOWN]).tolist():
            self._looked_at(number)
        intact: np.ndarray = self._state[numbers] == _INTACT
        return intact

    def readable(self, number: int) -> RecordBatch | None:
        """As ``batch``; None: it is damaged, and left out."""
        message = self._looked_at(number)
        return None if self._skip and self._state[number] == _DAMAGED else self._parsed(number, message)

    def batch(self, number: int) -> RecordBatch:
        """It itself, of which ``buffers`` are known from then on: a larger store's is not read twice.

        Raises:
            StoreDamaged: it differs from its checksum, or is none.
        """
        return self._parsed(number, self._looked_at(number))

    def _parsed(self, number: int, message: np.ndarray) -> RecordBatch:
        if self._state[number] == _DAMAGED:
            without = "" if self._remote else ", or train without these images, in a new run with data.damaged=skip"
            raise StoreDamaged(
                f"{self._difference(number)}: `ssl-dist store verify` lists all damage; build the store again, or"
                f" restore the file{without}"
            )
        shard, index = self.of(number)
        batch = shard.batch(index, message)
        self.buffers[number] = shard.image_buffers(index, message, batch)
        return batch

    def damage(self, number: int) -> Damage:
        """What messages say of it, damaged or not."""
        shard, index = self.of(number)
        rows = self.rows(number)
        return Damage(shard.entry.file, index, (rows.start, rows.stop))

    def verify(self) -> list[Damage]:
        """Check every byte of every shard where it lies, be it elsewhere; returns what is damaged."""
        damaged, first = list[Damage](), 0
        for number, shard in enumerate(self._shards):
            found = self._remote.damaged(number) if self._remote else shard.damaged()
            damaged += [self.damage(first + index) for index in found if index != NO_BATCH]
            damaged += [Damage(shard.entry.file, NO_BATCH, (0, 0))] if NO_BATCH in found else []
            first += len(shard.entry.batches)
        return damaged

    def _looked_at(self, number: int) -> np.ndarray:
        """Its bytes, checked if they have not been yet."""
        shard, index = self.of(number)
        message = shard.message(index)
        if self._state[number] == _UNKNOWN:
            intact = shard.matches(index, message)
            if self._remote and not intact:  # it was whole when it came
                self._remote.discard(int(self.shard_of[number]))
                message = shard.message(index)
                intact = shard.matches(index, message)
            self._state[number] = _INTACT if intact else _DAMAGED
            if self._skip and not intact:
                log.warning("%s: goes on without its images", self._difference(number))
        return message

    def _difference(self, number: int) -> str:
        shard, index, (start, stop) = self.damage(number)
        return f"{self._name}/{shard}: record batch {index} (samples {start}..{stop - 1}) differs from its checksum"
