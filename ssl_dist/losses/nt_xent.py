"""NT-Xent, SimCLR's contrastive loss, over the global batch: exact gradients, and no matrix of size B x B in memory.

N local images, B global images, D dimensions of an embedding, T rows of a tile. Rows alternate between the two views of
an image, so the positive of row r is row r XOR 1 on every rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import normalize

from ssl_dist.collectives import Group, RowCounts
from ssl_dist.errors import ConfigError

# Size of one square tile of logits; a few exist at a time. A CPU's cache holds it (measured); for GPUs it is a guess.
TILE_BYTES = {"cpu": 1 << 20, "cuda": 64 << 20}


def nt_xent(
    z_a: Tensor, z_b: Tensor, *, temperature: float | Tensor, similarity: str = "cosine", group: Group = None
) -> Tensor:
    """Compute the normalised temperature-scaled cross entropy, the mean over all 2B rows.

        s_ij = sim(z_i, z_j) / t        loss = 1/2B sum_i [ log sum_{j != i} exp(s_ij) - s_i,pos(i) ]

    All rows of other images in the global batch are negatives, even if an image occurs twice. The forward pass gathers
    the row counts, the embeddings and the rows' log-sum-exps; the backward pass needs no collective.

    Args:
        z_a, z_b: ``[N, D]``, the two views' embeddings of this rank's images; N may differ between ranks. float32 or
            float64; bfloat16 and float16 are computed in float32, under autocast too.
        temperature: t > 0. A scalar tensor can be learnt: a rank gets the gradient of its own rows, which is summed
            over ranks like that of any parameter.
        similarity: "cosine", or "dot" for the plain dot product.
        group: the ranks; None: the default group, or this process alone if there is no group.

    Returns:
        The loss of the global batch, a scalar, equal on all ranks. Its gradient for the local rows is exact, so
        parameter gradients have to be *summed* over ranks.

    Raises:
        ConfigError: temperature <= 0, unknown similarity, fewer than 2 images in the global batch, shapes that differ.

    Source: SimCLR, arXiv 2002.05709, equation 1 (google-research/simclr adds the two views' means: twice this value).
    """
    if z_a.device.type not in TILE_BYTES:
        raise ConfigError(f"device {z_a.device.type}: NT-Xent runs on {' and '.join(TILE_BYTES)}")
    if not temperature > 0:
        raise ConfigError(f"temperature {float(temperature):g}: it must be greater than 0")
    if similarity not in ("cosine", "dot"):
        raise ConfigError(f"similarity {similarity!r}: it is 'cosine' or 'dot'")
    if z_a.shape != z_b.shape or z_a.dim() != 2:
        raise ConfigError(f"the two views have shapes {tuple(z_a.shape)} and {tuple(z_b.shape)}: both must be [N, D]")
    with torch.autocast(z_a.device.type, enabled=False):
        z = torch.stack([z_a, z_b], dim=1)  # [N, 2, D]
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        if similarity == "cosine":
            z = normalize(z, dim=2)
        if isinstance(temperature, Tensor):
            temperature = temperature.to(z.dtype)
        loss: Tensor = _NTXent.apply(z / temperature**0.5, group)  # so that s_ij = y_i . y_j
    return loss


class _NTXent(torch.autograd.Function):
    """NT-Xent of y = z / sqrt(t), where p(i) is the positive of i and sums over j run over negatives only:

        a_i = log sum_j exp(s_ij) - s_i,p(i)        loss = 1/2B sum_i log(1 + exp(a_i))        lse_i = s_i,p(i) + loss_i
        dL/dy_i = 1/2B [ sum_j (exp(s_ij - lse_i) + exp(s_ij - lse_j)) y_j - (sigmoid(a_i) + sigmoid(a_p(i))) y_p(i) ]

    No large terms cancel where views agree. S is symmetric, so row i's part in the loss of row j needs only lse_j,
    which follows from the a_j that the forward pass gathers. The weight of y_j in the bracket is symmetric too, so a
    tile off the diagonal serves its rows and its columns.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, y: Tensor, group: Group) -> Tensor:
        row_counts = RowCounts.of(y, group)
        pairs = row_counts.gather(y)  # [B, 2, D]
        if len(pairs) < 2:
            raise ConfigError(f"NT-Xent needs 2 images or more in the global batch, it has {len(pairs)}")
        y_all = pairs.flatten(0, 1)  # [2B, D]
        mine = range(2 * row_counts.mine.start, 2 * row_counts.mine.stop)
        shift = _shift(y_all)
        positive = (pairs[:, 0] * pairs[:, 1]).sum(1).repeat_interleave(2)  # [2B]
        margin = _log_sum_exp(y_all, mine, shift) - positive
        margin = row_counts.gather(margin[mine.start : mine.stop].view(-1, 2)).flatten()  # [2B]
        losses = torch.logaddexp(margin, torch.zeros_like(margin))
        ctx.save_for_backward(y_all, margin, positive + losses)
        ctx.mine, ctx.shift = mine, shift  # type: ignore[attr-defined]
        return losses.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_loss: Tensor) -> tuple[Tensor, None]:
        y, margin, lse = ctx.saved_tensors  # type: ignore[attr-defined]
        mine: range = ctx.mine  # type: ignore[attr-defined]
        shift: float | None = ctx.shift  # type: ignore[attr-defined]
        grad = torch.zeros_like(y)
        for rows, columns, mirrored in _tiles(y, mine):
            weight = _weight(_logits(y, rows, columns), lse[rows], lse[columns], shift)
            grad[rows].addmm_(weight, y[columns])
            if mirrored:
                grad[columns].addmm_(weight.T, y[rows])
        local = slice(mine.start, mine.stop)
        pull = margin[local].sigmoid().view(-1, 2).sum(1).view(-1, 1, 1)  # [N, 1, 1]
        positive = y[local].view(-1, 2, y.shape[1]).flip(1)  # [N, 2, D]
        grad_y = grad[local].view(-1, 2, y.shape[1]).addcmul_(pull, positive, value=-1)
        return grad_y.mul_(grad_loss / len(y)), None


def _shift(y: Tensor) -> float | None:
    """Return one number c for all rows such that no exp(s_ij - c) over- or underflows, or None if there is none.

    It is the largest |y_i|^2, which no |s_ij| exceeds. One c halves the number of exponentials; with None, each row
    subtracts its own maximum.
    """
    largest = float(y.square().sum(1).max())
    return largest if 2 * largest < 0.9 * math.log(torch.finfo(y.dtype).max) else None


def _log_sum_exp(y: Tensor, mine: range, shift: float | None) -> Tensor:
    """Return log sum exp(s_ij) over negatives, [2B], tile by tile; only this rank's rows are complete."""
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
    return lse if shift is None else sums.log_().add_(shift)


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
