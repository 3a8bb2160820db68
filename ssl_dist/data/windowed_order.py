"""An order of samples that needs few shards at a time: shards are permuted, then samples within windows of shards."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from ssl_dist.data.permutation import join_epochs, sample_ids
from ssl_dist.errors import ConfigError
from ssl_dist.hashing import derive_seed

# Names of seeds that are derived from the run's: for the order of the shards, and for that of samples in a window.
_SHARDS, _WINDOW = 3, 4


class NeededShards(NamedTuple):
    """Numbers of the shards that are needed now, and of those that are needed next."""

    now: Collection[int]
    soon: Collection[int]


class _Layout(NamedTuple):
    """The order of one epoch.

    Attributes:
        shards: numbers of the shards in their order.
        starts: position at which each shard begins; the last entry is the end of the epoch.
        bounds: position at which each window begins; the last entry is the end of the epoch.
        first_shards: index in ``shards`` of each window's first shard; the last entry is the number of shards.
    """

    shards: np.ndarray
    starts: np.ndarray
    bounds: np.ndarray
    first_shards: np.ndarray

    def window_at(self, offset: int) -> int:
        """Return the number of the window that has a position of the epoch."""
        return int(np.searchsorted(self.bounds, offset, side="right")) - 1


class WindowedOrder:
    """An order of samples whose epochs go through the shards window by window.

    Each epoch has another permutation of the shards. It is cut into windows of similar size, and within a window all
    samples are permuted. A shard belongs to the window in which its first sample lies:

        window of a shard = (samples of the shards before it) div width,   width = ceil(n / ceil(n / window))

    so a window has fewer than ``width`` samples plus one shard, windows are even, and no narrow one is left at the end.
    Memory is O(shards), and any position is computed directly.

    Attributes:
        num_samples: samples of an epoch.
        width: samples of a window.
    """

    def __init__(self, seed: int, rows: Sequence[int] | np.ndarray, window: int) -> None:
        """
        Args:
            seed: any whole number.
            rows: samples of each shard, with ids in the order of the shards; some may be 0, not all.
            window: about how many samples are permuted together, 1 or more.
        """
        self._seed, self._rows = seed, np.asarray(rows, dtype=np.int64)
        self._offsets = np.concatenate([[0], np.cumsum(self._rows)])
        self._filled = np.flatnonzero(self._rows)
        self.num_samples = int(self._offsets[-1])
        self.width = -(-self.num_samples // -(-self.num_samples // window))
        self._layouts: dict[int, _Layout] = {}

    def sample_ids(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Return the samples at positions start .. stop-1 of an epoch, as ``permutation.sample_ids`` does."""
        if not 0 <= start <= stop <= self.num_samples:
            raise ConfigError(f"positions {start}..{stop} lie outside an epoch of {self.num_samples} samples")
        layout = self._layout(epoch)
        parts = [np.empty(0, dtype=np.int64)]
        while start < stop:
            window = layout.window_at(start)
            first, last = layout.bounds[window : window + 2].tolist()
            seed, end = derive_seed(self._seed, _WINDOW, window), min(stop, last)
            positions = first + sample_ids(seed, epoch, start - first, end - first, last - first)
            shard = np.searchsorted(layout.starts, positions, side="right") - 1
            parts.append(self._offsets[layout.shards[shard]] + positions - layout.starts[shard])
            start = end
        return np.concatenate(parts)

    def stream(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and epochs at positions start .. stop-1 of the endless stream, as ``permutation.stream`` does."""
        return join_epochs(self.sample_ids, start, stop, self.num_samples)

    def needed_shards(self, start: int, stop: int) -> NeededShards:
        """Return the shards of all windows that positions start .. stop-1 of the stream lie in, and of the next one."""
        now: dict[int, None] = {}
        position = start
        while position < stop:
            shards, position = self._window_of(position)
            now |= dict.fromkeys(shards)
        return NeededShards(list(now), self._window_of(position)[0])

    def sample_in_window(self, position: int, number: int) -> int:
        """Map ``number``, in [0, num_samples), to a sample of the window at ``position`` of the stream."""
        epoch, offset = divmod(position, self.num_samples)
        layout = self._layout(epoch)
        window = layout.window_at(offset)
        first, last = layout.bounds[window : window + 2].tolist()
        chosen = first + number % (last - first)
        return int(self.sample_ids(epoch, chosen, chosen + 1)[0])

    def max_window_bytes(self, shard_bytes: np.ndarray) -> float:
        """Return an upper bound of a window's size in bytes, in any epoch."""
        rows, sizes = self._rows[self._filled], shard_bytes[self._filled]
        dense_first = np.argsort(-sizes / rows, kind="stable")
        most_rows = self.width - 1 + rows.max()
        return float(np.interp(most_rows, np.cumsum(rows[dense_first]), np.cumsum(sizes[dense_first])))

    def _window_of(self, position: int) -> tuple[list[int], int]:
        """Return the shards of the window at a position of the stream, and the first position after it."""
        epoch, offset = divmod(position, self.num_samples)
        layout = self._layout(epoch)
        window = layout.window_at(offset)
        shards: list[int] = layout.shards[slice(*layout.first_shards[window : window + 2])].tolist()
        return shards, epoch * self.num_samples + int(layout.bounds[window + 1])

    def _layout(self, epoch: int) -> _Layout:
        if epoch not in self._layouts:
            count = len(self._filled)
            shards = self._filled[sample_ids(derive_seed(self._seed, _SHARDS), epoch, 0, count, count)]
            starts = np.concatenate([[0], np.cumsum(self._rows[shards])])
            first_shards = np.append(np.flatnonzero(np.diff(starts[:-1] // self.width, prepend=-1)), count)
            if len(self._layouts) > 1:  # a step needs two at most: its epoch's, and the next one's
                del self._layouts[min(self._layouts)]
            self._layouts[epoch] = _Layout(shards, starts, starts[first_shards], first_shards)
        return self._layouts[epoch]
