"""The process group as the science sees it: who I am, and gathers of rows that ranks hold in uneven shares."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor


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

    def any(self, flag: bool) -> bool:
        """True on every rank if it is on one."""
        if self.size == 1:
            return flag
        votes = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return bool(votes.item())

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


def rank_and_size(group: dist.ProcessGroup | None) -> tuple[int, int]:
    """(rank, size) in a group; None: the default group, or (0, 1) where there is none."""
    if not dist.is_initialized():
        return 0, 1
    return dist.get_rank(group), dist.get_world_size(group)


def gather_rows(rows: Tensor, group: dist.ProcessGroup | None = None) -> tuple[Tensor, int]:
    """Rows of all ranks, in rank order; no gradient flows.

    Args:
        rows: ``[n, ...]``, n may differ between ranks and be 0; all else must not.
        group: None: the default group, or this process alone where there is none.

    Returns:
        (``[sum of n, ...]``, the number of this rank's first row in it).
    """
    rank, size = rank_and_size(group)
    rows = rows.detach().contiguous()
    if size == 1:
        return rows, 0
    count = torch.tensor([len(rows)], device=rows.device)
    counts_by_rank = count.new_empty(size)
    dist.all_gather_single(counts_by_rank, count, group=group)
    counts: list[int] = counts_by_rank.tolist()
    longest = max(counts)
    if longest == min(counts):
        gathered = rows.new_empty(size * longest, *rows.shape[1:])
        dist.all_gather_single(gathered, rows, group=group)
        return gathered, rank * longest
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = rows.new_empty(size, longest, *rows.shape[1:])
    dist.all_gather_single(parts.view(-1, *rows.shape[1:]), padded, group=group)
    return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)]), sum(counts[:rank])
