"""The optimizer's settings, the learning rate as a function of the step, and the optimizer that they make."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic

from ssl_dist.settings import Section

if TYPE_CHECKING:
    import torch
    from torch import nn

Beta = Annotated[float, pydantic.Field(ge=0, lt=1)]


class OptimConfig(Section):
    """Settings of the optimizer and of the learning rate's schedule."""

    name: Literal["adamw", "sgd", "lars"] = "adamw"
    """Name of the optimizer."""
    lr: float = pydantic.Field(0.001, gt=0)
    """Learning rate after warm-up, before `lr_scaling` is applied; greater than 0."""
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """Factor of `lr` for B images in a batch: none (1), linear (B / 256) or sqrt (the square root of B / 256)."""
    weight_decay: float = pydantic.Field(1e-4, ge=0)
    """Weight decay, 0 or more; biases and norms have none."""
    momentum: float = pydantic.Field(0.9, ge=0, lt=1)
    """Momentum of sgd and lars, 0 <= momentum < 1."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of adamw's two moving averages, each 0 <= beta < 1."""
    trust_coefficient: float = pydantic.Field(0.001, gt=0)
    """Factor of lars' trust ratio, greater than 0."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after warm-up: half a cosine down to 0, or constant."""
    warmup_epochs: float = pydantic.Field(10, ge=0)
    """Epochs in which the learning rate rises from 0 to its peak, 0 or more."""
    clip_norm: float | None = pydantic.Field(None, gt=0)
    """Largest norm of the whole gradient, greater than 0; a larger gradient is scaled down. `None`: no limit."""

    @property
    def state_tensors(self) -> int:
        """Number of tensors of a parameter's size that the optimizer keeps for it."""
        return {"adamw": 2, "sgd": int(self.momentum > 0), "lars": 1}[self.name]

    def peak_lr(self, batch_size: int) -> float:
        """Return the learning rate after warm-up, for a global batch of ``batch_size`` images."""
        ratio = batch_size / 256
        return self.lr * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[self.lr_scaling]

    def learning_rate(self, step: int, *, batch_size: int, warmup_steps: int, total_steps: int) -> float:
        """Return the learning rate of step 0 .. total_steps - 1: linear warm-up, then what ``schedule`` says."""
        peak = self.peak_lr(batch_size)
        if step < warmup_steps:
            return peak * (step + 1) / warmup_steps
        if self.schedule == "constant":
            return peak
        return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps)))

    def build(self, module: nn.Module, freezable: Collection[str] = ()) -> torch.optim.Optimizer:
        """Build the optimizer of the module's trainable parameters; ``training.zero`` sets its rate before each step.

        Args:
            freezable: names of parameters that stand in groups of their own. In a step in which the engine sets
                ``frozen`` of these groups, the parameters and their state (momentum, averages, count of steps) stay.
        """
        import torch

        from ssl_dist.lars import LARS

        groups = parameter_groups(module, self.weight_decay, freezable)
        optimizer: torch.optim.Optimizer
        if self.name == "adamw":
            optimizer = torch.optim.AdamW(groups, lr=0.0, betas=self.betas)
        elif self.name == "sgd":
            optimizer = torch.optim.SGD(groups, lr=0.0, momentum=self.momentum)
        else:
            optimizer = LARS(groups, momentum=self.momentum, trust_coefficient=self.trust_coefficient)
        optimizer.register_step_pre_hook(_leave_out_frozen)
        return optimizer


def parameter_groups(module: nn.Module, weight_decay: float, freezable: Collection[str] = ()) -> list[dict[str, Any]]:
    """Split trainable parameters into weights (two dimensions or more) and others (biases and norms).

    The others have neither weight decay nor LARS' trust ratio. Those named in ``freezable`` come in further groups.
    """
    groups = []
    for can_freeze in (False, True):
        trained = [p for name, p in module.named_parameters() if p.requires_grad and (name in freezable) == can_freeze]
        weights, others = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
        common = {"freezable": can_freeze, "frozen": False}
        groups.append({"params": weights, "weight_decay": weight_decay, "adapt": True, **common})
        groups.append({"params": others, "weight_decay": 0.0, "adapt": False, **common})
    return [group for group in groups if group["params"]]


def _leave_out_frozen(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
    """Drop the gradients of frozen groups: an optimizer leaves a parameter without one, and its state, as they are."""
    for group in optimizer.param_groups:
        if group["frozen"]:
            for parameter in group["params"]:
                parameter.grad = None
