"""The optimizer's settings, the learning rate as a function of the step, and the optimizer that they make."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic

from ssl_dist.settings import Section

if TYPE_CHECKING:
    import torch
    from torch import nn

Beta = Annotated[float, pydantic.Field(ge=0, lt=1)]
_THRESHOLD, _EPS = 1e-4, 1e-8  # the defaults of torch's ReduceLROnPlateau


class OptimConfig(Section):
    """Settings of the optimizer and of the learning rate's schedule."""

    name: Literal["adamw", "adam", "sgd", "lars"] = "adamw"
    """Name of the optimizer; adam adds the weight decay to the gradient, adamw takes it off the weights."""
    lr: float = pydantic.Field(0.001, gt=0)
    """Learning rate after warm-up, before `lr_scaling` is applied; greater than 0."""
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """Factor of `lr` for B images in a batch: none (1), linear (B / 256) or sqrt (the square root of B / 256)."""
    weight_decay: float = pydantic.Field(1e-4, ge=0)
    """Weight decay, 0 or more; biases and norms have none."""
    momentum: float = pydantic.Field(0.9, ge=0, lt=1)
    """Momentum of sgd and lars, 0 <= momentum < 1."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of the two moving averages of adamw and adam, each 0 <= beta < 1."""
    trust_coefficient: float = pydantic.Field(0.001, gt=0)
    """Factor of lars' trust ratio, greater than 0."""
    layer_decay: float = pydantic.Field(1.0, gt=0, le=1)
    """Factor of the learning rate from each layer to the one before it, seen from the head, which has the whole rate;
    0 < factor <= 1. The layers are those that `method.unfreeze` counts."""
    schedule: Literal["cosine", "constant", "plateau"] = "cosine"
    """Learning rate after warm-up: half a cosine down to 0, constant, or lowered where the validation loss of
    `probe.kind` validation no longer falls (plateau)."""
    plateau_factor: float = pydantic.Field(0.1, gt=0, lt=1)
    """Factor by which plateau lowers the rate, 0 < factor < 1."""
    plateau_patience: int = pydantic.Field(3, ge=0)
    """Measurements in succession that may go by without a loss lower by a ten-thousandth; with one more, plateau lowers
    the rate. 0 or more."""
    warmup_epochs: float = pydantic.Field(10, ge=0)
    """Epochs in which the learning rate rises from 0 to its peak, 0 or more."""
    clip_norm: float | None = pydantic.Field(None, gt=0)
    """Largest norm of the whole gradient, greater than 0; a larger gradient is scaled down. `None`: no limit."""

    @property
    def state_tensors(self) -> int:
        """Number of tensors of a parameter's size that the optimizer keeps for it."""
        return {"adamw": 2, "adam": 2, "sgd": int(self.momentum > 0), "lars": 1}[self.name]

    def peak_lr(self, batch_size: int) -> float:
        """Return the learning rate after warm-up, for a global batch of ``batch_size`` images."""
        ratio = batch_size / 256
        return self.lr * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[self.lr_scaling]

    def learning_rate(
        self, step: int, *, batch_size: int, warmup_steps: int, total_steps: int, losses: Sequence[float] = ()
    ) -> float:
        """Return the learning rate of step 0 .. total_steps - 1: linear warm-up, then what ``schedule`` says.

        Args:
            losses: the validation losses before this step, on which the schedule plateau depends.
        """
        peak = self.peak_lr(batch_size)
        if step < warmup_steps:
            return peak * (step + 1) / warmup_steps
        if self.schedule == "constant":
            return peak
        if self.schedule == "plateau":
            return self._lowered(peak, losses)
        return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps)))

    def _lowered(self, rate: float, losses: Sequence[float]) -> float:
        """Return ``rate`` after the decisions of torch's ReduceLROnPlateau on these losses."""
        best, worse = math.inf, 0
        for loss in losses:
            if loss < best * (1 - _THRESHOLD):
                best, worse = loss, 0
            else:
                worse += 1
            if worse > self.plateau_patience:
                worse, lower = 0, rate * self.plateau_factor
                rate = lower if rate - lower > _EPS else rate
        return rate

    def build(
        self, module: nn.Module, freezable: Collection[str] = (), depths: Mapping[str, int] = MappingProxyType({})
    ) -> torch.optim.Optimizer:
        """Build the optimizer of the module's trainable parameters; ``training.zero`` sets its rate before each step.

        Args:
            freezable: names of parameters that stand in groups of their own. In a step in which the engine sets
                ``frozen`` of these groups, the parameters and their state (momentum, averages, count of steps) stay.
            depths: layers between a parameter of this name and the head, for ``layer_decay``; 0 where it is not named.
        """
        import torch

        from ssl_dist.eager import eager
        from ssl_dist.lars import LARS

        factors = {name: self.layer_decay**depth for name, depth in depths.items()}
        fused = any(p.device.type == "cuda" for p in module.parameters()) or None  # None: torch's choice
        groups = parameter_groups(module, self.weight_decay, freezable, factors)
        optimizer: torch.optim.Optimizer
        if self.name == "adamw":
            optimizer = eager(torch.optim.AdamW)(groups, lr=0.0, betas=self.betas, fused=fused)
        elif self.name == "adam":
            optimizer = eager(torch.optim.Adam)(groups, lr=0.0, betas=self.betas, fused=fused)
        elif self.name == "sgd":
            optimizer = eager(torch.optim.SGD)(groups, lr=0.0, momentum=self.momentum, fused=fused)
        else:
            optimizer = eager(LARS)(groups, momentum=self.momentum, trust_coefficient=self.trust_coefficient)
        optimizer.register_step_pre_hook(_leave_out_frozen)
        return optimizer


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    freezable: Collection[str] = (),
    factors: Mapping[str, float] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """Split trainable parameters into weights (two dimensions or more) and others (biases and norms).

    The others have neither weight decay nor LARS' trust ratio. Those named in ``freezable`` come in further groups, and
    so do those whose rate has another of the ``factors``, by name (default: 1); a group has its own in ``lr_factor``.
    """
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    kinds = {(name in freezable, factors.get(name, 1.0)) for name, _ in trained}
    groups = []
    for can_freeze, factor in sorted(kinds, key=lambda kind: (kind[0], -kind[1])):
        alike = [p for name, p in trained if (name in freezable, factors.get(name, 1.0)) == (can_freeze, factor)]
        weights, others = [p for p in alike if p.ndim > 1], [p for p in alike if p.ndim <= 1]
        common = {"freezable": can_freeze, "frozen": False, "lr_factor": factor}
        groups.append({"params": weights, "weight_decay": weight_decay, "adapt": True, **common})
        groups.append({"params": others, "weight_decay": 0.0, "adapt": False, **common})
    return [group for group in groups if group["params"]]


def _leave_out_frozen(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
    """Drop the gradients of frozen groups: an optimizer leaves a parameter without one, and its state, as they are."""
    for group in optimizer.param_groups:
        if group["frozen"]:
            for parameter in group["params"]:
                parameter.grad = None
