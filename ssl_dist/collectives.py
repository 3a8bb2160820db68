"""The process group as the science sees it: who I am, sums, and rows that ranks hold in uneven shares."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx


@dataclass(frozen=True)
class World:
    """This process among the workers. Alone (size 1) it needs no process group."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def current(cls, device: torch.device | None = None) -> World:
        """The default process group's, or the world of one where there is none."""
        device = device or torch.device("cpu")
        if not dist.is_initialized():
            return cls(0, 1, device)
        return cls(dist.get_rank(), dist.get_world_size(), device)

    def share(self, count: int) -> range:
        """This rank's part of ``count`` things: contiguous, in rank order, as even as can be, rank 0's the largest."""
        return range(-(-count * self.rank // self.size), -(-count * (self.rank + 1) // self.size))

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Each true on every rank if it is on one."""
        if self.size == 1:
            return flags
        votes = torch.tensor(flags, dtype=torch.float32, device=self.device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return tuple(vote > 0 for vote in votes.tolist())

    def from_first(self, number: int) -> int:
        """Rank 0's number, on every rank."""
        if self.size == 1:
            return number
        box = torch.tensor([number], device=self.device)
        dist.broadcast(box, src=0)
        return int(box.item())

    def sum_(self, values: Tensor) -> Tensor:
        """Add up over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values


@dataclass(frozen=True)
class RowCounts:
    """How many rows each rank of a group holds; they need not hold equally many, and some may hold none."""

    counts: tuple[int, ...]
    rank: int = 0
    group: dist.ProcessGroup | None = None

    @classmethod
    def of(cls, rows: Tensor, group: dist.ProcessGroup | None = None) -> RowCounts:
        """Every rank calls, with its own ``[n, ...]``.

        Args:
            group: None: the default group, or this process alone where there is none.
        """
        if not dist.is_initialized() or dist.get_world_size(group) == 1:
            return cls((len(rows),), 0, group)
        count = torch.tensor([len(rows)], device=rows.device)
        counts = count.new_empty(dist.get_world_size(group))
        dist.all_gather_single(counts, count, group=group)
        return cls(tuple(counts.tolist()), dist.get_rank(group), group)

    @property
    def total(self) -> int:
        """Rows of all ranks."""
        return sum(self.counts)

    @property
    def mine(self) -> range:
        """Numbers of this rank's rows among all."""
        first = sum(self.counts[: self.rank])
        return range(first, first + self.counts[self.rank])

    def gather(self, rows: Tensor) -> Tensor:
        """``[n, ...]`` of each rank -> ``[sum of n, ...]`` in rank order; no gradient flows."""
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
        dist.all_gather_single(gathered, padded, group=self.group)
        if longest == min(self.counts):
            return gathered
        parts = gathered.split(longest)
        return torch.cat([part[:count] for part, count in zip(parts, self.counts, strict=True)])


def sum_over_ranks(values: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Add up what each rank has; exact where all ranks go on from the sum alone, to the same loss.

        S = sum over ranks x_r      dL/dx_r = dL/dS, which each rank has: the backward pass sends nothing

    Args:
        values: of equal shape on all ranks; every rank calls.
        group: None: the default group, or this process alone where there is none.
    """
    return _Sum.apply(values, group) if _several(group) else values


def shared(values: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """What all ranks have alike (a sum over ranks), for use with the rows of this rank alone.

        L = sum over ranks f_r(S)      dL/dS = sum over ranks df_r/dS, which the backward pass adds up

    Args:
        values: equal on all ranks; every rank calls, in the forward and in the backward pass.
    """
    return _Shared.apply(values, group) if _several(group) else values


def centred(rows: Tensor, total: int, group: dist.ProcessGroup | None = None) -> Tensor:
    """Rows minus the mean of all ranks' ``total`` rows, with the gradient of that mean too; every rank calls.

    Args:
        rows: ``[n, ...]`` of this rank, n may be 0.
    """
    return rows - shared(sum_over_ranks(rows.sum(0), group), group) / total


def log_sum_exp(values: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """``log sum exp`` over the rows of all ranks, for use with the rows of this rank alone (as ``shared`` has it).

    Args:
        values: ``[n, ...]`` of this rank, n may differ and be 0; every rank calls, forward and backward.
        group: None: the default group, or this process alone where there is none.

    Returns:
        ``[...]``, alike on all ranks; finite wherever a row is.
    """
    mine = values.logsumexp(0)  # -inf without rows
    if not _several(group):
        return mine
    largest = mine.detach().clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    return shared(sum_over_ranks((mine - largest).exp(), group), group).log() + largest


def _several(group: dist.ProcessGroup | None) -> bool:
    return dist.is_initialized() and dist.get_world_size(group) > 1


def _added_up(values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    total = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        return _added_up(values, group)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group  # type: ignore[attr-defined]
        return values.view_as(values)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        return _added_up(grad, ctx.group), None  # type: ignore[attr-defined]
