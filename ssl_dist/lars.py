"""LARS, the optimizer of large batches, also where ZeRO has cut the parameters up."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssl_dist.errors import ConfigError


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
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            # whole lists at a time: on a GPU one kernel does the work of hundreds
            grads = list(torch._foreach_add([p.grad for p in parameters], parameters, alpha=group["weight_decay"]))
            if group["adapt"]:
                self._scale(parameters, grads, group)
            for parameter in parameters:
                if "momentum_buffer" not in self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            velocities = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, grads, alpha=group["lr"])
            torch._foreach_sub_(parameters, velocities)

    def _scale(self, parameters: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> None:
        """Multiply each parameter's gradient by the parameter's trust ratio, in place."""
        slices: list[tuple[int, Tensor, Tensor]] = []  # parameter's number, weight, gradient
        for number, (tensor, grad) in enumerate(zip(parameters, grads, strict=True)):
            for parameter, start, length in self._slices.get(tensor, [ParameterSlice(number, 0, tensor.numel())]):
                elements = slice(start, start + length)
                slices.append((parameter, tensor.view(-1)[elements], grad.view(-1)[elements]))
        numbers = [number for number, _, _ in slices]
        weights, its_grads = [weight for _, weight, _ in slices], [grad for _, _, grad in slices]
        squares = group["params"][0].new_zeros(2, group["num_parameters"])
        if slices:  # a worker may hold nothing but padding
            squares[:, numbers] = torch.stack(torch._foreach_norm(weights + its_grads)).square().view(2, -1)
        weight_norm, grad_norm = self._sum_over_workers(squares).sqrt()
        ratio = group["trust_coefficient"] * weight_norm / grad_norm
        trust = torch.where((weight_norm > 0) & (grad_norm > 0), ratio, 1.0).unbind()
        if slices:
            torch._foreach_mul_(its_grads, [trust[number] for number in numbers])
