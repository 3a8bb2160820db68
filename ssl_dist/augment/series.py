"""Exponential, cosine and sine of a tensor, computed such that an element's bits do not depend on the tensor's size.

A library may compute the last few elements of an array by other code than the rest, and round them differently. These
functions use sums and products alone, which every CPU rounds in the same way.
"""

from __future__ import annotations

import math

from torch import Tensor


def exp(x: Tensor) -> Tensor:
    """Return e^x for float32 values; values below -64 count as -64."""
    small = x.double().clamp(min=-64) / 256
    power = _polynomial(small, [1 / math.factorial(k) for k in range(7)])
    for _ in range(8):
        power *= power  # e^(x / 256) becomes e^x
    return power.float()


def cos_sin(angle: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of float32 angles in radians, of at most half a turn."""
    exact = angle.double()
    square = exact * exact
    cosine, sine = (
        _polynomial(square, [(-1) ** k / math.factorial(2 * k + odd) for k in range(10)]) for odd in range(2)
    )
    return cosine.float(), (exact * sine).float()


def _polynomial(x: Tensor, coefficients: list[float]) -> Tensor:
    """Evaluate a polynomial by Horner's rule; ``coefficients`` begin with the constant."""
    total = x * coefficients[-1]
    for coefficient in coefficients[-2:0:-1]:
        total += coefficient
        total *= x
    return total + coefficients[0]
