"""Random numbers as a 64-bit hash of integers, the same in NumPy, in torch on CPUs and in torch on CUDA.

Source: Steele et al., "Fast Splittable Pseudorandom Number Generators", 2014 (the mixing function SplitMix64).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch

    Integers = TypeVar("Integers", np.ndarray, torch.Tensor)


def _signed(word: int) -> int:
    """Return the int64 that has this 64-bit pattern."""
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_A = _signed(0xBF58476D1CE4E5B9)
_MIX_B = _signed(0x94D049BB133111EB)


def mix64(x: Integers) -> Integers:
    """Apply SplitMix64's finalizer, a bijection of 64-bit words, to each element.

    Args:
        x: int64 array or tensor of any shape; products wrap modulo 2**64.

    Returns:
        int64 of x's shape.
    """
    # int64 has no logical shift: shift arithmetically, then mask the copies of the sign bit away.
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _MIX_A
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _MIX_B
    x = x ^ ((x >> 31) & ((1 << 33) - 1))
    return x


def fold(state: Integers, word: Integers | int) -> Integers:
    """Mix one more 64-bit word into a hash state; shapes broadcast."""
    mixed: Integers = (state ^ (_signed(word) if isinstance(word, int) else word)) + _GOLDEN
    return mix64(mixed)


def derive_seed(*words: int) -> int:
    """Hash integers into a seed in [0, 2**63), e.g. ``derive_seed(seed, step, micro_batch)``."""
    state = np.zeros(1, dtype=np.int64)
    for word in words:
        state = fold(state, word)
    return int(state[0]) & ((1 << 63) - 1)
