"""How many micro-batches of a worker keep the graph of their first forward pass, so that they need no second one.

A kept graph takes the memory of a micro-batch's activations until its backward pass. The result of a step has the same
bits, however many are kept, unless torch.compile compiles passes with a graph and those without one differently.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist

from ssl_dist.collectives import World
from ssl_dist.config import RunConfig
from ssl_dist.machine import free_memory_bytes, resident_bytes

_SHARE_OF_MEMORY = 0.5  # of the machine's, which has other uses
_SHARE_OF_GPU = 0.9

log = logging.getLogger(__name__)


class KeptGraphs:
    """The graphs that this worker keeps; with ``batch.keep_graphs`` auto they are counted in the first step.

    Attributes:
        count: micro-batches, the first ones of each step; None until the first step's first forward pass is measured.
    """

    def __init__(self, config: RunConfig, world: World) -> None:
        wanted = config.batch.keep_graphs
        self.count = None if wanted == "auto" else wanted
        self._world = world

    def keeps(self, slot: int) -> bool:
        """Return whether the forward pass of a slot makes a graph: that of the first slot does, to be measured."""
        return slot < (1 if self.count is None else self.count)

    @contextlib.contextmanager
    def measured(self, num_slots: int) -> Iterator[None]:
        """Measure the first forward pass, unless the number is known; every rank passes through.

        At ZeRO stage 3 a forward pass is a collective operation, so that the number must be the same everywhere.
        """
        if self.count is not None:
            yield
            return
        before = self._used()
        yield
        graph_bytes = max(1, self._used() - before)
        more = int(self._room() / graph_bytes) - 1  # room for one graph is left, for a second forward pass
        self.count = self._least(min(num_slots, 1 + max(0, more)))
        log.info(
            "%d of %d micro-batches are embedded once (%.0f MB of memory each), the others twice",
            *(self.count, num_slots, graph_bytes / 1e6),
        )

    def _used(self) -> int:
        if self._world.device.type == "cuda":
            return torch.cuda.memory_allocated(self._world.device)
        return resident_bytes()

    def _room(self) -> float:
        """Return how many bytes this worker may still take for graphs."""
        if self._world.device.type == "cuda":  # not run on a GPU yet
            device = self._world.device
            free, _ = torch.cuda.mem_get_info(device)
            unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            return _SHARE_OF_GPU * (free + unused)
        workers_here = int(os.environ.get("LOCAL_WORLD_SIZE", self._world.size))
        return _SHARE_OF_MEMORY * free_memory_bytes() / workers_here

    def _least(self, number: int) -> int:
        """Return the least of the workers' numbers."""
        if self._world.size == 1:
            return number
        least = torch.tensor([number], device=self._world.device)
        dist.all_reduce(least, op=dist.ReduceOp.MIN)
        return int(least.item())
