"""Optimizers (AdamW, SGD, LARS), their settings, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from typing import Annotated, Any, Literal, NamedTuple

import pydantic
import torch
from torch import Tensor, nn

from ssl_dist.errors import ConfigError
from ssl_dist.settings import Section

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
        """Build the optimizer of the module's trainable parameters; the engine sets its rate before each step.

        Args:
            freezable: names of parameters that stand in groups of their own. In a step in which the engine sets
                ``frozen`` of these groups, the parameters and their state (momentum, averages, count of steps) stay.
        """
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


class ParameterSlice(NamedTuple):
    """Elements [start, start + length) of a flat ZeRO tensor, which belong to parameter ``parameter`` of the group."""

    parameter: int
    start: int
    length: int


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling.

        g' = g + weight_decay w      v <- momentum v + lr trust g'      w <- w - v
        trust = trust_coefficient |w| / |g'|, or 1 where either norm is 0 or the group has ``adapt`` False

    The trust ratio applies with weight decay 0 too. Norms are those of whole parameters. ZeRO 1 and 2 put flat tensors
    in the parameters' place, of which each worker has a part: ``shard`` says which slice belongs to which parameter,
    and squared norms are summed over workers, in one collective a group and step.

    Source: You et al., arXiv 1708.03888, algorithm 1, with weight decay inside the norm as google-research/simclr's
    lars_optimizer.py has it.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, momentum: float, trust_coefficient: float) -> None:
        if not 0 <= momentum < 1:
            raise ConfigError(f"momentum {momentum}: it must be at least 0 and less than 1")
        defaults = {"lr": 0.0, "momentum": momentum, "trust_coefficient": trust_coefficient, "adapt": True}
        super().__init__(groups, {**defaults, "weight_decay": 0.0})
        for group in self.param_groups:
            group["num_parameters"] = len(group["params"])
        self._slices: dict[Tensor, list[ParameterSlice]] = {}
        self._sum_over_workers: Callable[[Tensor], Tensor] = lambda values: values

    def use_flat_tensors(
        self, slices: dict[Tensor, list[ParameterSlice]], sum_over_workers: Callable[[Tensor], Tensor]
    ) -> None:
        """Learn that ZeRO has replaced the parameters in the groups by flat tensors, of which each worker holds a part.

        Args:
            slices: for each flat tensor, the parameters' slices of it; elements outside any slice are padding.
            sum_over_workers: adds a tensor up, in place, over the workers that share the parameters.
        """
        self._slices, self._sum_over_workers = slices, sum_over_workers

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the parameters once from their ``.grad``."""
        assert closure is None, "LARS does not evaluate the loss again"
        for group in self.param_groups:
            grads = {p: p.grad.add(p, alpha=group["weight_decay"]) for p in group["params"] if p.grad is not None}
            if group["adapt"]:
                self._scale(grads, group)
            for parameter, grad in grads.items():
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                velocity: Tensor = state["momentum_buffer"].mul_(group["momentum"]).add_(grad, alpha=group["lr"])
                parameter.sub_(velocity)

    def _scale(self, grads: dict[Tensor, Tensor], group: dict[str, Any]) -> None:
        """Multiply each parameter's gradient by the parameter's trust ratio, in place."""
        slices: list[tuple[int, Tensor, Tensor]] = []  # parameter's number, weight, gradient
        for number, (tensor, grad) in enumerate(grads.items()):
            for parameter, start, length in self._slices.get(tensor, [ParameterSlice(number, 0, tensor.numel())]):
                elements = slice(start, start + length)
                slices.append((parameter, tensor.view(-1)[elements], grad.view(-1)[elements]))
        squares = group["params"][0].new_zeros(2, group["num_parameters"])
        for number, weight, grad in slices:
            squares[0, number] += weight.square().sum()
            squares[1, number] += grad.square().sum()
        weight_norm, grad_norm = self._sum_over_workers(squares).sqrt()
        ratio = group["trust_coefficient"] * weight_norm / grad_norm
        trust = torch.where((weight_norm > 0) & (grad_norm > 0), ratio, 1.0)
        for number, _, grad in slices:
            grad.mul_(trust[number])
