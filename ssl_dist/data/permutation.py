"""The order of samples in training: a permutation for each epoch, computed position by position.

The sample at a position is a pure function of (seed, epoch, position). A Feistel network with cycle walking evaluates
the permutation of the n samples, so no array of size n exists and any position is computed directly. Training reads
one endless stream, whose position p holds sample ``permute(p mod n)`` of epoch ``p div n``. Step s, counted over the
whole run, takes positions s*B to s*B+B-1, where B is the number of images that a step draws from the stream. The end of
an epoch that does not fill a batch goes into the next epoch's first batch, so each epoch has every sample once.

Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002 (cycle walking);
Steele et al., "Fast Splittable Pseudorandom Number Generators", 2014 (the 64-bit mixing function).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from ssl_dist.errors import ConfigError
from ssl_dist.hashing import derive_seed, fold

_ROUNDS = 8  # 4 rounds of a good function are a pseudo-random permutation; the others are a margin for small n
_MIN_BITS = 6  # a domain of fewer than 64 values has too few distinct round functions to mix


def sample_ids(seed: int, epoch: int, start: int, stop: int, num_samples: int) -> np.ndarray:
    """Return the samples at positions start .. stop-1 of one epoch's permutation.

    Args:
        seed: any whole number.
        epoch: whole number; each epoch has a permutation of its own.
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
    """Permute [0, 2**bits). The halves may differ in width; they swap each round, and the rounds are even in number."""
    left_bits, right_bits = bits // 2, bits - bits // 2
    left, right = values >> right_bits, values & ((1 << right_bits) - 1)
    for key in keys:
        left, right = right, left ^ (fold(right, key) & ((1 << left_bits) - 1))
        left_bits, right_bits = right_bits, left_bits
    return (left << right_bits) | right


def stream(seed: int, start: int, stop: int, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the samples at positions start .. stop-1 of the endless stream of epochs.

    Returns:
        (ids, epochs), both int64 ``[stop - start]``.
    """
    return join_epochs(partial(sample_ids, seed, num_samples=num_samples), start, stop, num_samples)


def join_epochs(
    ids_of: Callable[[int, int, int], np.ndarray], start: int, stop: int, num_samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Join the epochs that positions start .. stop-1 of an endless stream lie in.

    Args:
        ids_of: (epoch, first position in it, one past the last) -> ids.

    Returns:
        (ids, epochs), both int64 ``[stop - start]``.
    """
    ids, epochs = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    while start < stop:
        epoch, first = divmod(start, num_samples)
        last = min(num_samples, first + stop - start)
        ids.append(ids_of(epoch, first, last))
        epochs.append(np.full(last - first, epoch, dtype=np.int64))
        start += last - first
    return np.concatenate(ids), np.concatenate(epochs)
