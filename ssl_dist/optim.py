"""Optimizers, what weight decay spares, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, NamedTuple

import pydantic
import torch
from torch import Tensor, nn

from ssl_dist.errors import ConfigError

Beta = Annotated[float, pydantic.Field(ge=0, lt=1)]


class OptimConfig(pydantic.BaseModel):
    """``lr`` is multiplied once by the rule of ``lr_scaling``: none, linear (B/256) or sqrt (square root of B/256)."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["adamw", "sgd", "lars"] = "adamw"
    lr: float = pydantic.Field(0.001, gt=0)
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    weight_decay: float = pydantic.Field(1e-4, ge=0)
    momentum: float = pydantic.Field(0.9, ge=0, lt=1)  # sgd and lars
    betas: tuple[Beta, Beta] = (0.9, 0.999)  # adamw
    trust_coefficient: float = pydantic.Field(0.001, gt=0)  # lars
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: float = pydantic.Field(10, ge=0)
    clip_norm: float | None = pydantic.Field(None, gt=0)  # of the global gradient; None: not clipped

    def peak_lr(self, batch_size: int) -> float:
        """The rate after warm-up, for a global batch of ``batch_size`` images."""
        ratio = batch_size / 256
        return self.lr * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[self.lr_scaling]

    def learning_rate(self, step: int, *, batch_size: int, warmup_steps: int, total_steps: int) -> float:
        """Rate of step 0 .. total_steps-1: a linear warm-up to the peak, then half a cosine to 0, or constant."""
        peak = self.peak_lr(batch_size)
        if step < warmup_steps:
            return peak * (step + 1) / warmup_steps
        if self.schedule == "constant":
            return peak
        return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps)))

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """The optimizer over the module's trainable parameters; its rate is set each step, to ``learning_rate``."""
        groups = parameter_groups(module, self.weight_decay)
        if self.name == "adamw":
            return torch.optim.AdamW(groups, lr=0.0, betas=self.betas)
        if self.name == "sgd":
            return torch.optim.SGD(groups, lr=0.0, momentum=self.momentum)
        return LARS(groups, momentum=self.momentum, trust_coefficient=self.trust_coefficient)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights (two or more dimensions) with weight decay; biases and norms without, and without LARS' trust ratio."""
    weights = [p for p in module.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in module.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [
        {"params": weights, "weight_decay": weight_decay, "adapt": True},
        {"params": others, "weight_decay": 0.0, "adapt": False},
    ]
    return [group for group in groups if group["params"]]


class Piece(NamedTuple):
    """Elements [start, start + length) of a flat tensor belong to parameter number ``parameter`` of its group."""

    parameter: int
    start: int
    length: int


def _no_other_worker(values: Tensor) -> Tensor:
    return values


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling.

        g' = g + weight_decay w      v <- momentum v + lr trust g'      w <- w - v
        trust = trust_coefficient |w| / |g'|, or 1 where either norm is 0 or the group has ``adapt`` False

    The trust ratio holds with weight decay 0 too. Norms are of whole parameters, also where ZeRO 1 or 2 has put flat
    slices in their place: ``shard`` says which slice is whose, and squared norms are added up over workers, in one
    collective a step.

    Source: You et al., arXiv 1708.03888, algorithm 1, with weight decay inside the norm as google-research/simclr's
    lars_optimizer.py has it.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, momentum: float, trust_coefficient: float) -> None:
        if not 0 <= momentum < 1:
            raise ConfigError(f"momentum {momentum}: 0 <= momentum < 1")
        defaults = {"lr": 0.0, "momentum": momentum, "trust_coefficient": trust_coefficient, "adapt": True}
        super().__init__(groups, {**defaults, "weight_decay": 0.0})
        for group in self.param_groups:
            group["num_parameters"] = len(group["params"])
        self._pieces: dict[Tensor, list[Piece]] = {}
        self._sum: Callable[[Tensor], Tensor] = _no_other_worker

    def shard(self, pieces: dict[Tensor, list[Piece]], sum_over_workers: Callable[[Tensor], Tensor]) -> None:
        """The groups now hold flat tensors, of which other workers have the other slices.

        Args:
            pieces: of each flat tensor; what belongs to no parameter is padding.
            sum_over_workers: adds a tensor up over the workers that share the parameters, in place.
        """
        self._pieces, self._sum = pieces, sum_over_workers

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update from the parameters' ``.grad``."""
        assert closure is None, "the loss is not evaluated again"
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
        """Multiply each parameter's part of the gradients by its trust ratio, in place."""
        parts: list[tuple[int, Tensor, Tensor]] = []
        for number, (tensor, grad) in enumerate(grads.items()):
            for piece in self._pieces.get(tensor, [Piece(number, 0, tensor.numel())]):
                where = slice(piece.start, piece.start + piece.length)
                parts.append((piece.parameter, tensor.view(-1)[where], grad.view(-1)[where]))
        squares = group["params"][0].new_zeros(2, group["num_parameters"])
        for number, weight, grad in parts:
            squares[0, number] += weight.square().sum()
            squares[1, number] += grad.square().sum()
        weight_norm, grad_norm = self._sum(squares).sqrt()
        ratio = group["trust_coefficient"] * weight_norm / grad_norm
        trust = torch.where((weight_norm > 0) & (grad_norm > 0), ratio, 1.0)
        for number, _, grad in parts:
            grad.mul_(trust[number])
