"""Which sample comes when: a pure function of (seed, epoch, position), in O(1) memory.

An epoch is a permutation of the n samples, evaluated one position at a time by a Feistel network with
cycle walking, so nothing of size n exists and any position is reached at once. Training reads one endless
stream: position p of it is sample ``permute(p mod n)`` of epoch ``p div n``. Step s takes positions
s*B .. s*B+B-1, so the tail of an epoch that does not fill a batch is carried into the next epoch's first
batch and every sample is seen exactly once an epoch.

Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002 (cycle walking);
Steele et al., "Fast Splittable Pseudorandom Number Generators", 2014 (the 64-bit mixing function).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from ssl_dist.errors import ConfigError

if TYPE_CHECKING:
    import torch

    Integers = TypeVar("Integers", np.ndarray, torch.Tensor)

_ROUNDS = 8  # 4 make a pseudo-random permutation of a good round function; the rest is margin for small n
_GROUPS, _SHARDS, _WINDOW = 2, 3, 4  # name the seeds of groups, of the order of shards, and of that in a window
_MIN_BITS = 6  # a domain of fewer than 64 values has too few distinct round functions to mix


def _signed(word: int) -> int:
    """A 64-bit pattern as the int64 that holds it."""
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_A = _signed(0xBF58476D1CE4E5B9)
_MIX_B = _signed(0x94D049BB133111EB)


def mix64(x: Integers) -> Integers:
    """SplitMix64's finalizer, a bijection of 64-bit words.

    Args:
        x: int64 array or tensor of any shape; products wrap modulo 2**64. The same numbers come out of
            numpy, torch on CPU and torch on CUDA.

    Returns:
        int64 of x's shape.
    """
    # int64 has no logical shift: shift arithmetically, then mask the copies of the sign bit away.
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _MIX_A
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _MIX_B
    x = x ^ ((x >> 31) & ((1 << 33) - 1))
    return x


def fold(state: Integers, word: Integers | int) -> Integers:
    """Absorb one more 64-bit word into a hash state; shapes broadcast."""
    mixed: Integers = (state ^ (_signed(word) if isinstance(word, int) else word)) + _GOLDEN
    return mix64(mixed)


def derive_seed(*words: int) -> int:
    """A seed in [0, 2**63) from whole numbers, e.g. ``derive_seed(seed, step, micro_batch)``."""
    state = np.zeros(1, dtype=np.int64)
    for word in words:
        state = fold(state, word)
    return int(state[0]) & ((1 << 63) - 1)


def sample_ids(seed: int, epoch: int, start: int, stop: int, num_samples: int) -> np.ndarray:
    """Samples at positions start .. stop-1 of one epoch's permutation.

    Args:
        seed: any whole number.
        epoch: 0, 1, ...; each is a permutation of its own.
        start, stop: positions, 0 <= start <= stop <= num_samples.
        num_samples: size of the permutation, 1 .. 2**62.

    Returns:
        int64 ``[stop - start]``, each in [0, num_samples).

    Raises:
        ConfigError: positions outside the epoch.
    """
    if not 0 <= start <= stop <= num_samples:
        raise ConfigError(f"positions {start}..{stop} lie outside an epoch of {num_samples} samples")
    values = np.arange(start, stop, dtype=np.int64)
    bits = max(_MIN_BITS, (num_samples - 1).bit_length())
    keys = [derive_seed(seed, epoch, round_) for round_ in range(_ROUNDS)]
    values = _feistel(values, bits, keys)
    outside = np.flatnonzero(values >= num_samples)
    while outside.size:
        values[outside] = _feistel(values[outside], bits, keys)
        outside = outside[values[outside] >= num_samples]
    return values


def _feistel(values: np.ndarray, bits: int, keys: list[int]) -> np.ndarray:
    """A permutation of [0, 2**bits): halves of unequal width swap each round, back in place after an even number."""
    left_bits, right_bits = bits // 2, bits - bits // 2
    left, right = values >> right_bits, values & ((1 << right_bits) - 1)
    for key in keys:
        left, right = right, left ^ (fold(right, key) & ((1 << left_bits) - 1))
        left_bits, right_bits = right_bits, left_bits
    return (left << right_bits) | right


def stream(seed: int, start: int, stop: int, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples at positions start .. stop-1 of the endless stream of epochs.

    Returns:
        (ids, epochs), both int64 ``[stop - start]``.
    """
    parts = [
        (sample_ids(seed, epoch, first, last, num_samples), epoch)
        for epoch, first, last in _epochs(start, stop, num_samples)
    ]
    return _joined(parts)


def _epochs(start: int, stop: int, num_samples: int) -> Iterator[tuple[int, int, int]]:
    """The epochs that a part of the stream touches: (epoch, first position in it, one past the last)."""
    while start < stop:
        epoch, first = divmod(start, num_samples)
        last = min(num_samples, first + stop - start)
        yield epoch, first, last
        start += last - first


def _joined(parts: Sequence[tuple[np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray]:
    empty = np.empty(0, dtype=np.int64)
    ids = [empty, *(ids for ids, _ in parts)]
    epochs = [empty, *(np.full(len(ids), epoch, dtype=np.int64) for ids, epoch in parts)]
    return np.concatenate(ids), np.concatenate(epochs)


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
        spans = _epochs(start, stop, self.num_samples)
        return _joined([(self.sample_ids(epoch, first, last), epoch) for epoch, first, last in spans])

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


class Groups:
    """Positions of an endless stream in which each block of K positions has one sample of each of K groups.

    A group's samples come in a permutation, and when it is through in another: rows of small groups come more often.

        position p: block b = p div K; group g = permute(b, p mod K); sample = permute(g, b div n_g, b mod n_g) of g
    """

    def __init__(self, seed: int, labels: np.ndarray) -> None:
        """
        Args:
            labels: whole numbers ``[n]``, equal in a group; rows of less than 0 are in none.
        """
        self._seed = seed
        self._rows = [np.flatnonzero(labels == label) for label in np.unique(labels[labels >= 0])]

    def stream(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """As the function ``stream``; an epoch is a group's own."""
        positions = np.arange(start, stop, dtype=np.int64)
        num_groups = len(self._rows)
        blocks = positions // num_groups
        groups = np.empty_like(positions)
        for block in np.unique(blocks):
            mine = blocks == block
            orders = sample_ids(derive_seed(self._seed, _GROUPS), int(block), 0, num_groups, num_groups)
            groups[mine] = orders[positions[mine] % num_groups]
        ids, epochs = np.empty_like(positions), np.empty_like(positions)
        for group in np.unique(groups):
            mine = np.flatnonzero(groups == group)  # one in each block, but for the first and the last
            seed, rows = derive_seed(self._seed, _GROUPS, int(group)), self._rows[group]
            places, epochs[mine] = stream(seed, int(blocks[mine[0]]), int(blocks[mine[-1]]) + 1, len(rows))
            ids[mine] = rows[places]
        return ids, epochs
