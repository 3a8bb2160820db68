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


class RunningStatistics:
    """The running statistics of every BatchNorm layer in a module; a layer with momentum None is refused.

    A layer whose parameters are frozen for the whole run is left as it is. The statistics of all layers lie in one flat
    tensor: on a GPU, many small operations would take longer than the arithmetic.

    Args:
        compiled: a part of the module, each of whose layers acts once in its forward pass. The pass is compiled whole,
            so that its statistics are only read at its end.
    """

    def __init__(self, module: nn.Module, compiled: nn.Module | None = None) -> None:
        layers = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        layers = [m for m in layers if all(parameter.requires_grad for parameter in m.parameters())]
        assert all(layer.momentum for layer in layers), "a cumulative average depends on how the batch was cut"
        self._collecting = False
        inside = set(compiled.modules()) if compiled else set()
        self._layers: dict[nn.Module, list[int]] = {}  # what ends the pass of which layers
        for number, layer in enumerate(layers):
            self._layers.setdefault(compiled if compiled and layer in inside else layer, []).append(number)
        if not layers:
            return
        self._buffers = [buffer for layer in layers for buffer in _statistics(layer)]
        self._counters = [layer.num_batches_tracked for layer in layers if layer.num_batches_tracked is not None]
        self._running = torch.cat(self._buffers)
        sizes = torch.tensor([2 * layer.num_features for layer in layers], device=self._running.device)
        self._layer_of = torch.arange(len(layers), device=sizes.device).repeat_interleave(sizes)  # of each statistic
        self._momentum = self._running.new_tensor([cast(float, m.momentum) for m in layers])[self._layer_of]
        # after the sums, how many forward passes each layer's are of: one tensor to add up over workers
        self._sums = self._running.new_zeros(len(self._running) + len(layers))
        self._totals = self._views(self._sums[: len(self._running)])
        self._passes = [0] * len(layers)
        for layer in layers:
            layer.momentum = 1.0
        for passed in self._layers:
            passed.register_forward_hook(self._add)

    @contextlib.contextmanager
    def collecting(self, wanted: bool) -> Iterator[None]:
        """Let forward passes in this block count, or not."""
        self._collecting = wanted
        try:
            yield
        finally:
            self._collecting = False

    @torch.no_grad()
    def _add(self, passed: nn.Module, inputs: object, output: object) -> None:
        if self._collecting and passed.training:
            numbers = self._layers[passed]
            both = [each for number in numbers for each in (2 * number, 2 * number + 1)]  # means and variances
            torch._foreach_add_([self._totals[each] for each in both], [self._buffers[each] for each in both])
            for number in numbers:
                self._passes[number] += 1

    @torch.no_grad()
    def update(self, world: World) -> None:
        """Move the running statistics by the forward passes that counted since the last call; every rank calls."""
        if not self._layers:
            return
        channels = len(self._running)
        if len(set(self._passes)) == 1:
            self._sums[channels:] = self._passes[0]  # the next line would wait for the GPU
        else:
            self._sums[channels:] = torch.tensor(self._passes, dtype=self._sums.dtype)
        world.sum_(self._sums)
        passes = self._sums[channels:][self._layer_of]
        moved = torch.lerp(self._running, self._sums[:channels] / passes, self._momentum)
        self._running = torch.where(passes > 0, moved, self._running)  # a layer that none passed keeps its statistics
        torch._foreach_copy_(self._buffers, self._views(self._running))
        if self._counters:
            torch._foreach_zero_(self._counters)  # of forward passes: how many depends on the number of workers
        self._sums.zero_()
        self._passes = [0] * len(self._passes)

    def _views(self, flat: Tensor) -> list[Tensor]:
        """Cut the flat statistics into one part for each buffer."""
        return list(flat.split([len(buffer) for buffer in self._buffers]))


def _statistics(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return the layer's means and variances ``[C]``."""
    return cast(Tensor, layer.running_mean), cast(Tensor, layer.running_var)
