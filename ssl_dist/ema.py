"""Slow copy of a module, whose weights follow the module's by an exponential moving average (EMA)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


class SlowCopy(nn.Module):
    """Copy of a module that is called like the module and passes no gradient.

    Its weights are buffers, so neither the optimizer nor ZeRO touches them, and checkpoints hold them. Its BatchNorm
    statistics come from its own forward passes.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(module)
        for submodule in self.module.modules():
            for name, parameter in list(submodule.named_parameters(recurse=False)):
                delattr(submodule, name)
                submodule.register_buffer(name, parameter.detach().clone())

    @torch.no_grad()
    def forward(self, *inputs: Any) -> Any:
        return self.module(*inputs)

    @torch.no_grad()
    def follow(self, module: nn.Module, momentum: float) -> None:
        """Move each weight towards the module's: ``slow <- momentum * slow + (1 - momentum) * module``."""
        slow = dict(self.module.named_buffers())
        for name, parameter in module.named_parameters():
            slow[name].lerp_(parameter.detach(), 1 - momentum)
