"""NT-Xent by torch tiles: the log-sum-exp of each row and its gradient, on every device and in float32 or float64.

C rows of all ranks, M of them this rank's; the weight of y_j in the gradient is symmetric, so a tile off the diagonal
serves its rows and its columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

# Size of one square tile of logits; a few exist at a time. A CPU's cache holds it (measured); for GPUs it is a guess.
TILE_BYTES = {"cpu": 1 << 20, "cuda": 64 << 20}


def log_sum_exp(y: Tensor, mine: range) -> tuple[Tensor, float | None]:
    """Return log sum_j exp(s_ij) over negatives, ``[M]``, and the shift that ``gradient`` takes.

    Args:
        y: ``[C, D]``; s_ij = y_i . y_j.
        mine: the rows i.
    """
    shift = _shift(y)
    lse = y.new_full((len(y),), -torch.inf)
    sums = y.new_zeros(len(y))
    for rows, columns, mirrored in _tiles(y, mine):
        logits = _logits(y, rows, columns)
        if shift is None:
            lse[rows] = torch.logaddexp(lse[rows], logits.logsumexp(1))
            if mirrored:
                lse[columns] = torch.logaddexp(lse[columns], logits.logsumexp(0))
        else:
            logits.sub_(shift).exp_()
            sums[rows] += logits.sum(1)
            if mirrored:
                sums[columns] += logits.sum(0)
    complete = lse if shift is None else sums.log_().add_(shift)
    return complete[mine.start : mine.stop], shift  # other rows only have the part of the mirrored tiles


def gradient(y: Tensor, mine: range, lse: Tensor, shift: float | None) -> Tensor:
    """Return sum_j (exp(s_ij - lse_i) + exp(s_ij - lse_j)) y_j over negatives, ``[M, D]``.

    Args:
        y: ``[C, D]``, as for ``log_sum_exp``.
        mine: the rows i.
        lse: ``[C]``, log sum_j exp(s_ij) over all j != i.
        shift: from ``log_sum_exp``.
    """
    grad = torch.zeros_like(y)
    for rows, columns, mirrored in _tiles(y, mine):
        weight = _weight(_logits(y, rows, columns), lse[rows], lse[columns], shift)
        grad[rows].addmm_(weight, y[columns])
        if mirrored:
            grad[columns].addmm_(weight.T, y[rows])
    return grad[mine.start : mine.stop]


def _shift(y: Tensor) -> float | None:
    """Return one number c for all rows such that no exp(s_ij - c) over- or underflows, or None if there is none.

    It is the largest |y_i|^2, which no |s_ij| exceeds. One c halves the number of exponentials; with None, each row
    subtracts its own maximum.
    """
    largest = float(y.square().sum(1).max())
    return largest if 2 * largest < 0.9 * math.log(torch.finfo(y.dtype).max) else None


def _weight(logits: Tensor, lse_rows: Tensor, lse_columns: Tensor, shift: float | None) -> Tensor:
    """Return exp(s_ij - lse_i) + exp(s_ij - lse_j) of a tile; ``logits`` is overwritten."""
    if shift is None:
        return (logits - lse_rows[:, None]).exp_().add_(logits.sub_(lse_columns).exp_())
    scale_rows, scale_columns = (shift - lse_rows).exp_(), (shift - lse_columns).exp_()
    return logits.sub_(shift).exp_().mul_(scale_rows[:, None] + scale_columns)


def _tiles(y: Tensor, mine: range) -> Iterator[tuple[slice, slice, bool]]:
    """Cut S[mine, all] into tiles of at most T x T: (rows, columns, mirrored).

    Of two tiles that mirror each other at the diagonal only one is given, with ``mirrored`` true: it stands for
    (columns, rows) too. T is even, so that a row and its positive are in one tile on the diagonal.
    """
    side = max(2, math.isqrt(TILE_BYTES[y.device.type] // y.element_size()) // 2 * 2)
    local = _cut(mine, side)
    remote = _cut(range(mine.start), side) + _cut(range(mine.stop, len(y)), side)
    for number, rows in enumerate(local):
        for columns in local[number:] + remote:
            yield rows, columns, rows.stop <= columns.start < mine.stop


def _cut(numbers: range, length: int) -> list[slice]:
    """Cut a range into slices of at most this length."""
    starts = range(numbers.start, numbers.stop, length)
    return [slice(start, min(start + length, numbers.stop)) for start in starts]


def _logits(y: Tensor, rows: slice, columns: slice) -> Tensor:
    """Return s_ij of a tile, -inf where row number j is i or its positive; equal images elsewhere stay negatives."""
    logits = y[rows] @ y[columns].T
    if rows == columns:
        own = torch.arange(len(logits), device=y.device)
        logits[own, own] = -torch.inf
        logits[own, own ^ 1] = -torch.inf
    return logits
