"""A slow copy of a module, which follows its weights by an exponential moving average."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


class SlowCopy(nn.Module):
    """Calls like the module that it was copied from, without a gradient.

    Its weights are buffers: no optimizer and no ZeRO stage has a part in them, and a checkpoint holds them. Its
    BatchNorm statistics are those of its own forward passes.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(module)
        for part in self.module.modules():
            for name, parameter in list(part.named_parameters(recurse=False)):
                delattr(part, name)
                part.register_buffer(name, parameter.detach().clone())

    @torch.no_grad()
    def forward(self, *inputs: Any) -> Any:
        return self.module(*inputs)

    @torch.no_grad()
    def follow(self, module: nn.Module, momentum: float) -> None:
        """``ours <- momentum * ours + (1 - momentum) * theirs``, for each weight of the module that was copied."""
        slow = dict(self.module.named_buffers())
        for name, parameter in module.named_parameters():
            slow[name].lerp_(parameter.detach(), 1 - momentum)
