"""An order of images that touches few shards at a time: shards are permuted, then images within windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ssl_dist.data.permutation import epochs_of, joined, sample_ids
from ssl_dist.errors import ConfigError
from ssl_dist.hashing import derive_seed

_SHARDS, _WINDOW = 3, 4  # name the seeds of the order of shards, and of that in a window


class _Layout(NamedTuple):
    """One epoch of ``Windows``: shards in their order, the position at which each begins, and the first shard of each
    window; both end with one more, where the epoch does."""

    shards: np.ndarray
    starts: np.ndarray
    firsts: np.ndarray


class Windows:
    """An epoch in which only some shards are touched at a time.

    Each epoch the shards come in another permutation, cut into windows of about as many samples; within a window, all
    samples are permuted. A shard is in the window in which its first sample would lie:

        window of a shard = (samples of the shards before it) div width,   width = ceil(n / ceil(n / window))

    so a window has less than ``width`` samples and one shard more, windows are even, and no narrow one is left at the
    end. Memory is O(shards), and a position is reached at once.

    Attributes:
        num_samples: of an epoch.
        width: of a window, in samples.
    """

    def __init__(self, seed: int, rows: Sequence[int] | np.ndarray, window: int) -> None:
        """
        Args:
            rows: samples of each shard, whose ids follow on one another; some may be 0, not all.
            window: samples that are mixed, 1 or more.
        """
        self._seed, self._rows = seed, np.asarray(rows, dtype=np.int64)
        self._offsets = np.concatenate([[0], np.cumsum(self._rows)])
        self._filled = np.flatnonzero(self._rows)
        self.num_samples = int(self._offsets[-1])
        self.width = -(-self.num_samples // -(-self.num_samples // window))
        self._layouts: dict[int, _Layout] = {}

    def sample_ids(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """As the function ``sample_ids``."""
        if not 0 <= start <= stop <= self.num_samples:
            raise ConfigError(f"positions {start}..{stop} lie outside an epoch of {self.num_samples} samples")
        layout = self._layout(epoch)
        bounds = layout.starts[layout.firsts]
        parts = [np.empty(0, dtype=np.int64)]
        while start < stop:
            window = int(np.searchsorted(bounds, start, side="right")) - 1
            first, last = int(bounds[window]), int(bounds[window + 1])
            seed, end = derive_seed(self._seed, _WINDOW, window), min(stop, last)
            places = first + sample_ids(seed, epoch, start - first, end - first, last - first)
            shard = np.searchsorted(layout.starts, places, side="right") - 1
            parts.append(self._offsets[layout.shards[shard]] + places - layout.starts[shard])
            start = end
        return np.concatenate(parts)

    def stream(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """As the function ``stream``."""
        spans = epochs_of(start, stop, self.num_samples)
        return joined([(self.sample_ids(epoch, first, last), epoch) for epoch, first, last in spans])

    def shards(self, start: int, stop: int) -> tuple[list[int], list[int]]:
        """Shards of the windows that positions start .. stop-1 of the stream touch, and of the window after them."""
        now: dict[int, None] = {}
        position = start
        while position < stop:
            found, position = self._window_at(position)
            now |= dict.fromkeys(found)
        return list(now), self._window_at(position)[0]

    def within(self, position: int, number: int) -> int:
        """Of the window at a position of the stream, the sample that a number of [0, num_samples) stands for."""
        epoch, offset = divmod(position, self.num_samples)
        layout = self._layout(epoch)
        bounds = layout.starts[layout.firsts]
        window = int(np.searchsorted(bounds, offset, side="right")) - 1
        place = int(bounds[window]) + number % int(bounds[window + 1] - bounds[window])
        return int(self.sample_ids(epoch, place, place + 1)[0])

    def heaviest(self, weights: np.ndarray) -> float:
        """What the shards of a window weigh at most, in any epoch, where each shard has a weight of its own."""
        rows, weights = self._rows[self._filled], weights[self._filled]
        dense = np.argsort(-weights / rows, kind="stable")
        most = self.width - 1 + rows.max()
        return float(np.interp(most, np.cumsum(rows[dense]), np.cumsum(weights[dense])))

    def _window_at(self, position: int) -> tuple[list[int], int]:
        """Shards of the window at a position of the stream, and the first position after it."""
        epoch, offset = divmod(position, self.num_samples)
        layout = self._layout(epoch)
        bounds = layout.starts[layout.firsts]
        window = int(np.searchsorted(bounds, offset, side="right")) - 1
        shards: list[int] = layout.shards[layout.firsts[window] : layout.firsts[window + 1]].tolist()
        return shards, epoch * self.num_samples + int(bounds[window + 1])

    def _layout(self, epoch: int) -> _Layout:
        if epoch not in self._layouts:
            count = len(self._filled)
            shards = self._filled[sample_ids(derive_seed(self._seed, _SHARDS), epoch, 0, count, count)]
            starts = np.concatenate([[0], np.cumsum(self._rows[shards])])
            firsts = np.flatnonzero(np.diff(starts[:-1] // self.width, prepend=-1))
            if len(self._layouts) > 1:  # of this epoch and the one before or after
                del self._layouts[min(self._layouts)]
            self._layouts[epoch] = _Layout(shards, starts, np.append(firsts, count))
        return self._layouts[epoch]
