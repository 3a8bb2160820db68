"""All record batches of a store, numbered from 0 across its shards: locate, verify and parse them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ssl_dist.errors import StoreDamaged, StoreError
from ssl_dist.store.remote import Fetcher
from ssl_dist.store.schema import NO_BATCH
from ssl_dist.store.shard_reader import RecordBatch, ShardReader

_UNKNOWN, _INTACT, _DAMAGED = range(3)

log = logging.getLogger(__name__)


class Damage(NamedTuple):
    """A record batch whose bytes differ from its checksum.

    Attributes:
        shard: file name of the shard.
        batch: number of the record batch in the shard; NO_BATCH: only bytes outside the record batches differ.
        rows: sample ids of its rows, (first, last + 1).
    """

    shard: str
    batch: int
    rows: tuple[int, int]


class RecordBatches:
    """The record batches of a whole store. Each is verified once, when it is first read.

    Args:
        name: name of the store, for messages.
        shards: all shards, in the order of the manifest.
        remote: downloads the shards of a remote store; None for a local one.
        checked: whether to compare record batches with their checksums.
        skip: whether the user has chosen to leave out damaged images (``data.damaged=skip``).

    Attributes:
        starts: int64 ``[batches + 1]``; record batch b has the sample ids [starts[b], starts[b + 1]).
        shard_of: int64 ``[batches]``, number of the shard of each.
        buffer_offsets: int64 ``[batches, 2]``, offsets in the shard's file of the Arrow buffers of the images (see
            ``ShardReader.buffer_offsets``); -1 where raw images have no second buffer, and before ``locate_buffers``.
    """

    def __init__(
        self, name: str, shards: Sequence[ShardReader], remote: Fetcher | None, *, checked: bool, skip: bool
    ) -> None:
        self._name, self._shards, self._remote, self._skip = name, shards, remote, skip
        counts = [len(shard.entry.batches) for shard in shards]
        rows = [batch.rows for shard in shards for batch in shard.entry.batches]
        self.starts = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])
        self.shard_of = np.repeat(np.arange(len(counts)), counts)
        self._index_in_shard = np.concatenate([np.arange(count) for count in counts])
        self._state = np.full(len(rows), _UNKNOWN if checked else _INTACT, dtype=np.uint8)
        self.buffer_offsets = np.full((len(rows), 2), -1, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._state)

    def locate_samples(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the sample ids as int64 ``[N]``, and the number of each one's record batch.

        Raises:
            StoreError: an id is outside the store.
        """
        ids, end = np.asarray(ids, dtype=np.int64), int(self.starts[-1])
        if ids.size and not ids.view(np.uint64).max() < end:  # one comparison: a negative id becomes a large one
            raise StoreError(f"{self._name} has samples 0..{end - 1}, asked for {ids.min()}..{ids.max()}")
        return ids, np.searchsorted(self.starts, ids, side="right") - 1

    def shard_and_index(self, number: int) -> tuple[ShardReader, int]:
        """Return the shard of a record batch, and its number in that shard."""
        return self._shards[self.shard_of[number]], int(self._index_in_shard[number])

    def sample_range(self, number: int) -> slice:
        """Return the sample ids of a record batch."""
        return slice(int(self.starts[number]), int(self.starts[number + 1]))

    def locate_buffers(self, numbers: np.ndarray) -> None:
        """Fill in the ``buffer_offsets`` of these record batches; raise StoreDamaged if one is damaged."""
        unknown = self.buffer_offsets[numbers, 0] < 0
        for number in set(numbers[unknown].tolist()) if unknown.any() else ():
            self.read(number)

    def intact(self, numbers: np.ndarray) -> np.ndarray:
        """Return bool, in the shape of ``numbers``: whether each record batch has its checksum."""
        for number in np.unique(numbers[self._state[numbers] == _UNKNOWN]).tolist():
            self._read_message(number)
        intact: np.ndarray = self._state[numbers] == _INTACT
        return intact

    def read(self, number: int) -> RecordBatch:
        """Read a record batch, and remember its ``buffer_offsets``, so that a later ``gather`` need not read it again.

        Raises:
            StoreDamaged: it differs from its checksum, or is not a record batch.
        """
        return self._parse(number, self._read_message(number))

    def read_or_skip(self, number: int) -> RecordBatch | None:
        """Read a record batch; return None if it is damaged and to be left out."""
        message = self._read_message(number)
        return None if self._skip and self._state[number] == _DAMAGED else self._parse(number, message)

    def _parse(self, number: int, message: np.ndarray) -> RecordBatch:
        if self._state[number] == _DAMAGED:
            skip = "" if self._remote else ", or train without these images, in a new run with data.damaged=skip"
            raise StoreDamaged(
                f"{self._difference(number)}: `ssl-dist store verify` lists all damage; build the store again, or"
                f" restore the file{skip}"
            )
        shard, index = self.shard_and_index(number)
        batch = shard.parse(index, message)
        offsets = shard.buffer_offsets(index, message, batch)
        self.buffer_offsets[number, : len(offsets)] = offsets
        return batch

    def describe(self, number: int) -> Damage:
        """Return the shard, number and sample ids of a record batch as messages name them, damaged or not."""
        shard, index = self.shard_and_index(number)
        ids = self.sample_range(number)
        return Damage(shard.entry.file, index, (ids.start, ids.stop))

    def verify(self, progress: Callable[[int, int], None] | None = None) -> list[Damage]:
        """Check every byte of every shard, in the bucket if the store is remote; return what is damaged.

        Args:
            progress: called with (images checked, images in all) after each shard.
        """
        damaged, first = list[Damage](), 0
        for number, shard in enumerate(self._shards):
            found = self._remote.damaged_batches(number) if self._remote else shard.damaged_batches()
            damaged += [self.describe(first + index) for index in found if index != NO_BATCH]
            damaged += [Damage(shard.entry.file, NO_BATCH, (0, 0))] if NO_BATCH in found else []
            first += len(shard.entry.batches)
            if progress:
                progress(int(self.starts[first]), int(self.starts[-1]))
        return damaged

    def _read_message(self, number: int) -> np.ndarray:
        """Read the bytes of a record batch, and verify them if this has not been done yet."""
        shard, index = self.shard_and_index(number)
        message = shard.read_message(index)
        if self._state[number] == _UNKNOWN:
            intact = shard.is_intact(index, message)
            if self._remote and not intact:  # its download was verified, so the copy in the cache has changed since
                self._remote.discard(int(self.shard_of[number]))
                message = shard.read_message(index)
                intact = shard.is_intact(index, message)
            self._state[number] = _INTACT if intact else _DAMAGED
            if self._skip and not intact:
                log.warning("%s: its images are left out", self._difference(number))
        return message

    def _difference(self, number: int) -> str:
        shard, index, (start, stop) = self.describe(number)
        return f"{self._name}/{shard}: record batch {index} (samples {start}..{stop - 1}) differs from its checksum"
