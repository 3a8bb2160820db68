"""BatchNorm's running statistics as part of the result: one update a step, from all micro-batches of all workers.

With momentum 1 a training forward pass leaves its own statistics in the buffers. They are added up over the
micro-batches of this worker and over workers, and the mean moves the running statistics once a step, so these do not
depend on how micro-batches are shared out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_dist.collectives import World


class RunningStatistics:
    """Takes over the running statistics of every BatchNorm in a module (those of momentum None are refused)."""

    def __init__(self, module: nn.Module) -> None:
        self._layers = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        self._momentum = [float(layer.momentum or 0.0) for layer in self._layers]
        for layer in self._layers:
            assert layer.momentum, "a cumulative average depends on how the batch was cut"
            layer.momentum = 1.0
        self._running = [buffer.clone() for buffer in self._buffers()]
        self._sums = [torch.zeros_like(buffer) for buffer in self._running]

    def _buffers(self) -> list[Tensor]:
        pairs = [(layer.running_mean, layer.running_var) for layer in self._layers]
        return [buffer for pair in pairs for buffer in pair if buffer is not None]

    def collect(self) -> None:
        """Add the statistics that the last forward pass left."""
        for total, buffer in zip(self._sums, self._buffers(), strict=True):
            total.add_(buffer)

    @torch.no_grad()
    def update(self, num_micro: int, world: World) -> None:
        """One step: the mean over the ``num_micro`` micro-batches of all workers moves the running statistics."""
        if not self._layers:
            return
        flat = world.sum_(torch.cat([total.flatten() for total in self._sums])).div_(num_micro)
        means = flat.split([total.numel() for total in self._sums])
        for index, (running, mean, buffer) in enumerate(zip(self._running, means, self._buffers(), strict=True)):
            running.lerp_(mean.view_as(running), self._momentum[index // 2])
            buffer.copy_(running)
            self._sums[index].zero_()
        for layer in self._layers:
            if layer.num_batches_tracked is not None:
                layer.num_batches_tracked.fill_(0)  # counts forward passes, which depend on the worker count
