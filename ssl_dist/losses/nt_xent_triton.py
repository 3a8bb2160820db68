"""Triton kernels of NT-Xent for CUDA: the log-sum-exp of each row and its gradient, S never leaving the chip.

Each program owns some rows and walks over all columns in a fixed order, so no atomic is needed and equal calls give
equal bits; that S is symmetric is not used, (2 + 4) M C D flops are done. Tensor cores multiply in halves: y * 2^k is
split into high + low, two float16 numbers, and

    y_i . y_j = (high_i . high_j + high_i . low_j + low_i . high_j) / 2^2k

float16 keeps 11 bits as TF32 does, so the pair keeps 22 of float32's 24 bits; it is twice as fast as TF32 three times,
and a Hopper tensor core reads either operand transposed, which it cannot do for TF32. Logarithms here have base 2.

M rows of this rank, C columns of all ranks, D dimensions padded to a power of 2.
"""

# Kernels name what is known when they are compiled in capitals, and Triton reads annotations of constexpr alone.
# ruff: noqa: N803, N806
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

PADDING = 128  # rows of a column tile at most: the halves' number of rows is a multiple of it
LOG2_E = math.log2(math.e)


class Config(NamedTuple):
    """Rows and columns of a tile, and how the compiler lays it out."""

    rows: int
    columns: int
    warps: int
    stages: int

    def options(self) -> dict[str, int]:
        """Return the arguments of a kernel."""
        return {"ROWS": self.rows, "COLUMNS": self.columns, "num_warps": self.warps, "num_stages": self.stages}

    def on_chip_bytes(self, dim: int) -> int:
        """Return the bytes of the row tile and of the column tiles that are there or on their way, two halves each."""
        return 2 * 2 * dim * (self.rows + self.stages * self.columns)


# By padded D at most; the first that fits the chip is taken, and the last fits the 160 KiB of an A100.
# `python -m benchmarks.gpu nt-xent --tune` measures others.
FORWARD = {128: [Config(128, 128, 8, 2), Config(128, 64, 8, 2)], 256: [Config(64, 32, 4, 2)]}
BACKWARD = {128: [Config(128, 64, 8, 2)], 256: [Config(64, 32, 8, 2)]}


class Halves(NamedTuple):
    """Pairs of float16 numbers whose sum is y * scale: ``high`` and ``low``, [C padded, D]; a power of 2, [1]."""

    high: Tensor
    low: Tensor
    scale: Tensor

    @classmethod
    def of(cls, y: Tensor) -> Halves:
        """Split rows ``[C, dim]`` after scaling their largest number to between 2^14 and 2^15."""
        dim = max(16, triton.next_power_of_2(y.shape[1]))
        smallest, largest = y.aminmax()
        exponent = torch.frexp(torch.maximum(largest, -smallest)).exponent
        scale = torch.ldexp(y.new_ones(1), (15 - exponent).clamp(-60, 60))
        high, low = y.new_zeros(2, triton.cdiv(len(y), PADDING) * PADDING, dim, dtype=torch.float16)
        for rows, its_high, its_low in zip(*(each.split(1 << 16) for each in (y, high, low)), strict=True):
            scaled = rows * scale  # a slice at a time, so that float32 copies stay small
            its_high[: len(rows), : y.shape[1]] = scaled
            its_low[: len(rows), : y.shape[1]] = scaled.sub_(its_high[: len(rows), : y.shape[1]])
        return cls(high, low, scale)


def log_sum_exp(y: Tensor, mine: range, config: Config | None = None) -> tuple[Tensor, Tensor]:
    """Return log sum_j exp(s_ij) over negatives, natural, and the largest of log2(e) s_ij; ``[M]`` each.

    Args:
        y: ``[C, dim]``, float32 on CUDA; s_ij = y_i . y_j.
        mine: the rows i.
    """
    halves = Halves.of(y)
    lse, largest = y.new_empty(2, len(mine))
    config = config or _config(FORWARD, halves)
    if mine:
        _log_sum_exp[(triton.cdiv(len(mine), config.rows),)](
            halves.high,
            halves.low,
            LOG2_E / halves.scale.square(),
            lse,
            largest,
            mine.start,
            mine.stop,
            len(y),
            D=halves.high.shape[1],
            **config.options(),
        )
    return lse.div_(LOG2_E), largest


def gradient(y: Tensor, mine: range, lse: Tensor, largest: Tensor, config: Config | None = None) -> Tensor:
    """Return sum_j (exp(s_ij - lse_i) + exp(s_ij - lse_j)) y_j over negatives j, ``[M, dim]``.

    The weight of y_j is at most e^(m_i - lse_i) + e^(m_i - min lse), and e^0 per term, where m_i is the row's largest
    s_ij. A power of 2 per row lifts it to float16's range before it is split into halves.

    Args:
        y: ``[C, dim]``, as for ``log_sum_exp``.
        lse: ``[C]``, log sum_j exp(s_ij) over all j != i.
        largest: ``[M]``, from ``log_sum_exp``.
    """
    halves = Halves.of(y)
    lse = lse * LOG2_E
    local = lse[mine.start : mine.stop]
    bound = torch.logaddexp2((largest - local).clamp_(max=0), (largest - lse.amin()).clamp_(max=0))
    lift = 14 - bound.ceil_()  # [M]
    grad = y.new_empty(len(mine), y.shape[1])
    config = config or _config(BACKWARD, halves)
    if mine:
        _gradient[(triton.cdiv(len(mine), config.rows),)](
            halves.high,
            halves.low,
            LOG2_E / halves.scale.square(),
            halves.scale,
            lse,
            lift,
            grad,
            mine.start,
            mine.stop,
            len(y),
            y.shape[1],
            D=halves.high.shape[1],
            **config.options(),
        )
    return grad


def _config(configs: dict[int, list[Config]], halves: Halves) -> Config:
    dim, on_chip = halves.high.shape[1], 160 << 10
    if halves.high.is_cuda:
        on_chip = torch.cuda.get_device_properties(halves.high.device).shared_memory_per_block_optin  # type: ignore[attr-defined]
    some = next(some for most, some in configs.items() if dim <= most)
    return next(config for config in some if config.on_chip_bytes(dim) <= on_chip)


@triton.jit
def _load(high, low, row, mask, D: tl.constexpr):
    offset = row.to(tl.int64)[:, None] * D + tl.arange(0, D)[None, :]
    return tl.load(high + offset, mask=mask[:, None], other=0.0), tl.load(low + offset, mask=mask[:, None], other=0.0)


@triton.jit
def _column_tile(high, low, number, columns, D: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the column numbers and halves of a tile; past the last tile the first one follows."""
    tiles = tl.cdiv(columns, COLUMNS)
    number = tl.where(number < tiles, number, number - tiles)
    offset = tl.arange(0, COLUMNS)[:, None] * D + tl.arange(0, D)[None, :] + number.to(tl.int64) * (COLUMNS * D)
    return number * COLUMNS + tl.arange(0, COLUMNS), tl.load(high + offset), tl.load(low + offset)


@triton.jit
def _logits(row_high, row_low, high, low, unit, row, column, columns, DIAGONAL: tl.constexpr):
    """Return log2(e) s_ij of a tile, -inf where j is no negative of i; the small products are added up first."""
    logits = tl.dot(row_low, tl.trans(high))
    logits = tl.dot(row_high, tl.trans(low), logits)
    logits = tl.dot(row_high, tl.trans(high), logits) * unit
    negative = (column < columns)[None, :]
    if DIAGONAL:
        negative = negative & ((row >> 1)[:, None] != (column >> 1)[None, :])
    return tl.where(negative, logits, float("-inf"))


@triton.jit
def _diagonal(start, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the first tile of columns that meets the diagonal, and how many do."""
    first = start // COLUMNS
    return first, tl.minimum(tl.cdiv(start + ROWS, COLUMNS), tl.cdiv(columns, COLUMNS)) - first


@triton.jit
def _log_sum_exp(
    high,
    low,
    unit,
    lse,
    largest,
    begin,
    end,
    columns,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    start = begin + tl.program_id(0) * ROWS
    row = start + tl.arange(0, ROWS)
    row_high, row_low = _load(high, low, row, row < end, D)
    unit = tl.load(unit)
    first, diagonal = _diagonal(start, columns, ROWS, COLUMNS)
    top = tl.full([ROWS], -1e38, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for DIAGONAL in tl.static_range(2):  # the tiles on the diagonal need a mask, the others do not
        for number in range(0 if DIAGONAL else diagonal, diagonal if DIAGONAL else tl.cdiv(columns, COLUMNS)):
            column, column_high, column_low = _column_tile(high, low, first + number, columns, D, COLUMNS)
            logits = _logits(row_high, row_low, column_high, column_low, unit, row, column, columns, DIAGONAL)
            higher = tl.maximum(top, tl.max(logits, 1))
            total = total * tl.exp2(top - higher) + tl.sum(tl.exp2(logits - higher[:, None]), 1)
            top = higher
    tl.store(lse + row - begin, top + tl.log2(total), mask=row < end)
    tl.store(largest + row - begin, top, mask=row < end)


@triton.jit
def _gradient(
    high,
    low,
    unit,
    scale,
    lse,
    lift,
    grad,
    begin,
    end,
    columns,
    dim,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    start = begin + tl.program_id(0) * ROWS
    row = start + tl.arange(0, ROWS)
    row_high, row_low = _load(high, low, row, row < end, D)
    unit = tl.load(unit)
    row_lift = tl.load(lift + row - begin, mask=row < end, other=0.0)
    row_shift = row_lift - tl.load(lse + row, mask=row < end, other=0.0)
    first, diagonal = _diagonal(start, columns, ROWS, COLUMNS)
    total = tl.zeros([ROWS, D], tl.float32)
    for DIAGONAL in tl.static_range(2):
        for number in range(0 if DIAGONAL else diagonal, diagonal if DIAGONAL else tl.cdiv(columns, COLUMNS)):
            column, column_high, column_low = _column_tile(high, low, first + number, columns, D, COLUMNS)
            column_lse = tl.load(lse + column, mask=column < columns, other=0.0)
            logits = _logits(row_high, row_low, column_high, column_low, unit, row, column, columns, DIAGONAL)
            weight = tl.exp2(logits + row_shift[:, None])
            weight += tl.exp2(logits + (row_lift[:, None] - column_lse[None, :]))
            weight_high = weight.to(tl.float16)
            weight_low = (weight - weight_high.to(tl.float32)).to(tl.float16)
            part = tl.dot(weight_low, column_high)
            part = tl.dot(weight_high, column_low, part)
            total += tl.dot(weight_high, column_high, part)  # tensor cores truncate: long sums are rounded here
    total = total * (tl.exp2(-row_lift) / tl.load(scale))[:, None]
    dims = tl.arange(0, D)
    offset = (row - begin).to(tl.int64)[:, None] * dim + dims[None, :]
    tl.store(grad + offset, total, mask=(row < end)[:, None] & (dims < dim)[None, :])
