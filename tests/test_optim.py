"""Tests of LARS against the paper's formula, and of the parameters without weight decay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssl_dist.optim import LARS, OptimConfig, parameter_groups


def reference_lars(
    w: torch.Tensor, grads: list[torch.Tensor], rates: list[float], decay: float, adapt: bool
) -> torch.Tensor:
    velocity = torch.zeros_like(w)
    for grad, rate in zip(grads, rates, strict=True):
        update = grad + decay * w
        trust = 0.001 * w.norm() / update.norm() if adapt else 1.0
        velocity = 0.9 * velocity + rate * trust * update
        w = w - velocity
    return w


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_lars_follows_the_formula_also_without_weight_decay(weight_decay: float) -> None:
    torch.manual_seed(0)
    module = nn.Linear(4, 3).double()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    grads = {name: [torch.randn_like(p) for _ in range(5)] for name, p in module.named_parameters()}
    rates = [0.1, 0.2, 0.3, 0.2, 0.1]
    optimizer = OptimConfig(name="lars", weight_decay=weight_decay).build(module)
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for name, p in module.named_parameters():
            p.grad = grads[name][step]
        optimizer.step()
    for name, p in module.named_parameters():
        weight = name == "weight"
        expected = reference_lars(before[name], grads[name], rates, weight_decay if weight else 0.0, adapt=weight)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=0)


def test_lars_leaves_zero_weights_to_the_plain_update() -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    optimizer = LARS([{"params": [weight], "lr": 0.5}], momentum=0.0, trust_coefficient=0.001)
    weight.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(weight.detach(), torch.full((2, 2), -0.5))


def test_biases_and_norms_have_no_weight_decay_and_no_trust_ratio() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    weights, others = parameter_groups(module, 0.1)
    assert (weights["weight_decay"], weights["adapt"], len(weights["params"])) == (0.1, True, 2)
    assert (others["weight_decay"], others["adapt"], len(others["params"])) == (0.0, False, 4)
