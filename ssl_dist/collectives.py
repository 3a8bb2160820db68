"""Communication between workers: ``World`` shares a batch out among ranks; sums and gathers have exact gradients.

Ranks may hold different numbers of rows; some may hold none.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx

Group = dist.ProcessGroup | None  # None: the default group, or this process alone if there is no group
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # the name before torch 2.14


@dataclass(frozen=True)
class World:
    """This process among the workers. A world of size 1 needs no process group."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def current(cls, device: torch.device | None = None) -> World:
        """Return the world of the default process group, or a world of size 1 if there is no group."""
        device = device or torch.device("cpu")
        if not dist.is_initialized():
            return cls(0, 1, device)
        return cls(dist.get_rank(), dist.get_world_size(), device)

    def share(self, count: int) -> range:
        """Return this rank's range of ``count`` items.

        The ranges are contiguous and in rank order. Their lengths differ by 1 at most; rank 0's is never shorter.
        """
        return range(-(-count * self.rank // self.size), -(-count * (self.rank + 1) // self.size))

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return, for each flag, whether it is true on any rank; every rank calls."""
        if self.size == 1:
            return flags
        maxima = torch.tensor(flags, dtype=torch.float32, device=self.device)
        dist.all_reduce(maxima, op=dist.ReduceOp.MAX)
        return tuple(maximum > 0 for maximum in maxima.tolist())

    def from_first(self, number: int) -> int:
        """Return the number that rank 0 passes; every rank calls."""
        if self.size == 1:
            return number
        message = torch.tensor([number], device=self.device)
        dist.broadcast(message, src=0)
        return int(message.item())

    def sum_(self, values: Tensor) -> Tensor:
        """Add ``values`` up over ranks, in place; every rank calls."""
        if self.size > 1:
            dist.all_reduce(values)
        return values


@dataclass(frozen=True)
class RowCounts:
    """Number of rows that each rank of a group holds."""

    counts: tuple[int, ...]
    rank: int = 0
    group: Group = None

    @classmethod
    def of(cls, rows: Tensor, group: Group = None) -> RowCounts:
        """Count the rows of all ranks; every rank calls, with its own ``[n, ...]``.

        Args:
            rows: this rank's rows.
        """
        if not _has_several_ranks(group):
            return cls((len(rows),), 0, group)
        count = torch.tensor([len(rows)], device=rows.device)
        counts = count.new_empty(dist.get_world_size(group))
        _all_gather(counts, count, group=group)
        return cls(tuple(counts.tolist()), dist.get_rank(group), group)

    @property
    def total(self) -> int:
        """Number of rows of all ranks together."""
        return sum(self.counts)

    @property
    def mine(self) -> range:
        """This rank's row numbers among the rows of all ranks."""
        first = sum(self.counts[: self.rank])
        return range(first, first + self.counts[self.rank])

    def gather(self, rows: Tensor) -> Tensor:
        """Concatenate the ranks' ``[n, ...]`` in rank order, without a gradient; every rank calls."""
        assert len(rows) == self.counts[self.rank], "as many rows as were counted"
        rows = rows.detach().contiguous()
        if len(self.counts) == 1:
            return rows
        longest = max(self.counts)
        padded = rows
        if len(rows) < longest:
            padded = rows.new_zeros(longest, *rows.shape[1:])
            padded[: len(rows)] = rows
        gathered = rows.new_empty(len(self.counts) * longest, *rows.shape[1:])
        _all_gather(gathered, padded, group=self.group)
        if longest == min(self.counts):
            return gathered
        parts = gathered.split(longest)
        return torch.cat([part[:count] for part, count in zip(parts, self.counts, strict=True)])


def sum_over_ranks(values: Tensor, group: Group = None) -> Tensor:
    """Add ``values`` up over ranks, for use where all ranks compute the same loss from the sum alone.

        S = sum over ranks x_r      dL/dx_r = dL/dS

    Each rank already has dL/dS, so the backward pass sends nothing.

    Args:
        values: a tensor of equal shape on all ranks; every rank calls.
    """
    return _Sum.apply(values, group) if _has_several_ranks(group) else values


def sum_gradient_over_ranks(values: Tensor, group: Group = None) -> Tensor:
    """Return ``values`` unchanged and add their gradient up over ranks in the backward pass.

    This is for a tensor that is equal on all ranks (such as a sum over ranks) and that each rank combines with rows of
    its own:

        L = sum over ranks f_r(S)      dL/dS = sum over ranks df_r/dS

    Args:
        values: equal on all ranks; every rank calls, in the forward and in the backward pass.
    """
    return _GradientSum.apply(values, group) if _has_several_ranks(group) else values


def subtract_global_mean(rows: Tensor, total: int, group: Group = None) -> Tensor:
    """Subtract the mean over the rows of all ranks; the gradient flows through the mean too. Every rank calls.

    Args:
        rows: ``[n, ...]`` of this rank; n may be 0.
        total: number of rows of all ranks.
    """
    return rows - sum_gradient_over_ranks(sum_over_ranks(rows.sum(0), group), group) / total


def log_sum_exp_over_ranks(values: Tensor, group: Group = None) -> Tensor:
    """Return ``log sum exp`` over the rows of all ranks, for use with this rank's own rows.

    The backward pass adds the gradient up over ranks, as ``sum_gradient_over_ranks`` does.

    Args:
        values: ``[n, ...]`` of this rank; n may differ and be 0. Every rank calls, forward and backward.

    Returns:
        ``[...]``, equal on all ranks; finite if any row is.
    """
    local = values.logsumexp(0)  # -inf without rows
    if not _has_several_ranks(group):
        return local
    largest = local.detach().clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    return sum_gradient_over_ranks(sum_over_ranks((local - largest).exp(), group), group).log() + largest


def _has_several_ranks(group: Group) -> bool:
    return dist.is_initialized() and dist.get_world_size(group) > 1


def _all_reduced(values: Tensor, group: Group) -> Tensor:
    total = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor, group: Group) -> Tensor:
        return _all_reduced(values, group)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _GradientSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor, group: Group) -> Tensor:
        ctx.group = group  # type: ignore[attr-defined]
        return values.view_as(values)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        return _all_reduced(grad, ctx.group), None  # type: ignore[attr-defined]
