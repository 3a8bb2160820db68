"""The process group as the science sees it: who I am, and rows that ranks hold in uneven shares."""

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
class Shares:
    """How many rows each rank of a group holds; they need not hold equally many, and some may hold none."""

    counts: tuple[int, ...]
    rank: int = 0
    group: dist.ProcessGroup | None = None

    @classmethod
    def of(cls, rows: Tensor, group: dist.ProcessGroup | None = None) -> Shares:
        """Every rank calls, with its own ``[n, ...]``.

        Args:
            group: None: the default group, or this process alone where there is none.
        """
        if not dist.is_initialized() or dist.get_world_size(group) == 1:
            return cls((len(rows),))
        count = torch.tensor([len(rows)], device=rows.device)
        counts = count.new_empty(dist.get_world_size(group))
        dist.all_gather_single(counts, count, group=group)
        return cls(tuple(counts.tolist()), dist.get_rank(group), group)

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
