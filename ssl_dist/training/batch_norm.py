"""BatchNorm's running statistics, updated once a step from all micro-batches of all workers.

They are part of the trained model, so they must not depend on how micro-batches are shared out. With momentum 1 each
forward pass leaves its own statistics in the buffers. These are added up over the forward passes of all workers, and
their mean moves the running statistics once a step. A layer that one micro-batch passes several times (crops of several
sizes) counts each time; a layer that none passed keeps its statistics.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_dist.collectives import World


class _Layer:
    """One BatchNorm layer, with its statistics as ``[2, C]``: C means and C variances."""

    def __init__(self, layer: _BatchNorm) -> None:
        assert layer.momentum, "a cumulative average depends on how the batch was cut"
        self.layer, self.momentum = layer, float(layer.momentum)
        layer.momentum = 1.0
        self.running = self.latest()
        self.total, self.passes = torch.zeros_like(self.running), 0

    def latest(self) -> Tensor:
        """Return the buffers: the statistics of the last forward pass in training mode."""
        return torch.stack(self._buffers())

    def _buffers(self) -> list[Tensor]:
        return [cast(Tensor, self.layer.running_mean), cast(Tensor, self.layer.running_var)]

    def move(self, total: Tensor, passes: float) -> None:
        """Move the running statistics towards the mean ``total / passes``, and write them into the buffers."""
        if passes:
            self.running.lerp_(total / passes, self.momentum)
        for buffer, value in zip(self._buffers(), self.running, strict=True):
            buffer.copy_(value)
        if self.layer.num_batches_tracked is not None:
            self.layer.num_batches_tracked.fill_(0)  # counts forward passes, which depend on the worker count
        self.total.zero_()
        self.passes = 0


class RunningStatistics:
    """The running statistics of every BatchNorm layer in a module; a layer with momentum None is refused.

    A layer whose parameters are frozen for the whole run is left as it is.
    """

    def __init__(self, module: nn.Module) -> None:
        layers = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        found = [m for m in layers if all(parameter.requires_grad for parameter in m.parameters())]
        self._layers: dict[nn.Module, _Layer] = {layer: _Layer(layer) for layer in found}
        self._collecting = False
        for layer in found:
            layer.register_forward_hook(self._add)

    @contextlib.contextmanager
    def collecting(self, wanted: bool) -> Iterator[None]:
        """Let forward passes in this block count, or not."""
        self._collecting = wanted
        try:
            yield
        finally:
            self._collecting = False

    @torch.no_grad()
    def _add(self, layer: nn.Module, inputs: object, output: object) -> None:
        if self._collecting and layer.training:
            known = self._layers[layer]
            known.total += known.latest()
            known.passes += 1

    @torch.no_grad()
    def update(self, world: World) -> None:
        """Move the running statistics by the forward passes that counted since the last call; every rank calls."""
        if not self._layers:
            return
        layers = list(self._layers.values())
        passes = layers[0].total.new_tensor([layer.passes for layer in layers])
        flat = world.sum_(torch.cat([passes, *(layer.total.flatten() for layer in layers)]))
        passes, *totals = flat.split([len(layers), *(layer.total.numel() for layer in layers)])
        for layer, total, count in zip(layers, totals, passes.tolist(), strict=True):
            layer.move(total.view_as(layer.total), count)
