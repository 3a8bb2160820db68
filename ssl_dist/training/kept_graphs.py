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
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ssl_dist.collectives import World
from ssl_dist.config import RunConfig
from ssl_dist.machine import free_memory_bytes, num_cores

_SHARE_OF_MEMORY = 0.5  # of the machine's, which has other uses
_SHARE_OF_GPU = 0.9
_BUCKET_BYTES = 2 << 30  # DeepSpeed's, in which it reduces gradients at stages 1 and 2
_VIEWS_BYTES = 1 << 30  # of the next micro-batches, which are made on a stream of their own

log = logging.getLogger(__name__)


class KeptGraphs:
    """The graphs that this worker keeps; with ``batch.keep_graphs`` auto they are counted in the first step.

    Args:
        method: what is trained.

    Attributes:
        count: micro-batches, the first ones of each step; None until the first step's first forward pass is measured.
    """

    def __init__(self, method: nn.Module, config: RunConfig, world: World) -> None:
        wanted = config.batch.keep_graphs
        if wanted == "auto" and config.engine.zero_stage == 3:
            wanted = 0  # several graphs at once would hold the whole parameters
        self.count = None if wanted == "auto" else wanted
        self._method, self._config, self._world = method, config, world

    def keeps(self, slot: int) -> bool:
        """Return whether a slot's first pass keeps its graph; before the number is known, slot 0's does."""
        return slot < (1 if self.count is None else self.count)

    @contextlib.contextmanager
    def counting(self, num_slots: int, growth: float = 1.0) -> Iterator[None]:
        """Measure the graph that the block makes, and count how many fit, unless the number is known already.

        Every rank passes through. They keep equally many, because at ZeRO stage 3 forward passes are collective.

        Args:
            growth: factor by which graphs of later steps are larger.
        """
        if self.count is not None:
            yield
            return
        held = {parameter.untyped_storage().data_ptr() for parameter in self._method.parameters()}
        sizes = dict[int, int]()

        def pack(saved: Tensor) -> Tensor:
            storage = saved.untyped_storage()
            if storage.data_ptr() not in held:
                sizes[storage.data_ptr()] = storage.nbytes()
            return saved

        with saved_tensors_hooks(pack, lambda saved: saved):
            yield
        graph_bytes = max(1, growth * sum(sizes.values()))
        more = int(self._room() / graph_bytes) - 1  # a backward pass takes up to another graph
        self.count = self._least(min(num_slots, 1 + max(0, more)))
        log.info(
            "%d of %d micro-batches are embedded once (%.0f MB of memory each), the others twice",
            *(self.count, num_slots, graph_bytes / 1e6),
        )

    def _room(self) -> float:
        """Return how many bytes this worker may still take for graphs."""
        parameters = [parameter for parameter in self._method.parameters() if parameter.requires_grad]
        to_come = (1 + self._config.optim.state_tensors) * sum(parameter.nbytes for parameter in parameters)
        device = self._world.device
        if device.type == "cuda":  # not run on a GPU yet
            free, _ = torch.cuda.mem_get_info(device)
            unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            to_come += _VIEWS_BYTES + (_BUCKET_BYTES if self._config.engine.zero_stage in (1, 2) else 0)
            return _SHARE_OF_GPU * (free + unused) - to_come
        # other workers, and other runs of a sweep, take memory when this one does: as many as there are cores for
        workers_here = int(os.environ.get("LOCAL_WORLD_SIZE", self._world.size))
        at_once = max(workers_here, num_cores() // torch.get_num_threads())
        return _SHARE_OF_MEMORY * free_memory_bytes() / at_once - to_come

    def _least(self, number: int) -> int:
        """Return the least of the workers' numbers."""
        if self._world.size == 1:
            return number
        least = torch.tensor([number], device=self._world.device)
        dist.all_reduce(least, op=dist.ReduceOp.MIN)
        return int(least.item())
