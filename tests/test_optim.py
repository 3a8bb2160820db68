"""Tests of LARS against the paper's formula, of the parameters without weight decay, and of frozen parameters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_dist import methods
from ssl_dist.config import RunConfig
from ssl_dist.eager import eager
from ssl_dist.lars import LARS
from ssl_dist.optim import OptimConfig, parameter_groups
from ssl_dist.training.exactness import config_of
from tests.gloo import GlooPool
from tests.helpers import small_config, smooth_method, train


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


def reference_sgd(w: Tensor, grads: list[Tensor], rates: list[float], decay: float, adapt: bool) -> Tensor:
    velocity = torch.zeros_like(w)
    for grad, rate in zip(grads, rates, strict=True):
        velocity = 0.9 * velocity + grad + decay * w
        w = w - rate * velocity
    return w


def reference_adamw(w: Tensor, grads: list[Tensor], rates: list[float], decay: float, adapt: bool) -> Tensor:
    mean, square = torch.zeros_like(w), torch.zeros_like(w)
    for step, (grad, rate) in enumerate(zip(grads, rates, strict=True), 1):
        mean, square = 0.9 * mean + 0.1 * grad, 0.999 * square + 0.001 * grad.square()
        w = w * (1 - rate * decay)
        w = w - rate * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
    return w


def reference_adam(w: Tensor, grads: list[Tensor], rates: list[float], decay: float, adapt: bool) -> Tensor:
    """Compute Kingma and Ba's algorithm 1 (arXiv 1412.6980), with the decay in the gradient."""
    mean, square = torch.zeros_like(w), torch.zeros_like(w)
    for step, (grad, rate) in enumerate(zip(grads, rates, strict=True), 1):
        decayed = grad + decay * w
        mean, square = 0.9 * mean + 0.1 * decayed, 0.999 * square + 0.001 * decayed.square()
        w = w - rate * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
    return w


REFERENCES = {"sgd": reference_sgd, "lars": reference_lars, "adamw": reference_adamw, "adam": reference_adam}


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("frozen_steps", [range(3), range(2, 5), range(6)], ids=["at first", "between", "always"])
def test_a_frozen_parameter_and_its_state_stay_under_every_optimizer(
    name: str, weight_decay: float, frozen_steps: range
) -> None:
    """It moves as if the frozen steps were not there; AdamW's correction of its first steps counts its own steps."""
    torch.manual_seed(0)
    module = nn.Linear(4, 3).double()
    before = {key: p.detach().clone() for key, p in module.named_parameters()}
    grads = {key: [torch.randn_like(p) for _ in range(6)] for key, p in module.named_parameters()}
    rates = [0.1, 0.2, 0.3, 0.2, 0.1, 0.3]
    optimizer = OptimConfig(name=name, weight_decay=weight_decay).build(module, ("weight",))
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"], group["frozen"] = rate, group["freezable"] and step in frozen_steps
        for key, p in module.named_parameters():
            p.grad = grads[key][step].clone()
        optimizer.step()
    reference: Callable[..., Tensor] = REFERENCES[name]
    for key, p in module.named_parameters():
        steps = [step for step in range(6) if key == "bias" or step not in frozen_steps]
        chosen = [grads[key][step] for step in steps], [rates[step] for step in steps]
        decay, adapt = (weight_decay, True) if key == "weight" else (0.0, False)
        torch.testing.assert_close(p.detach(), reference(before[key], *chosen, decay, adapt), rtol=1e-12, atol=0)


def test_freezable_parameters_have_the_settings_of_their_kind() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    groups = parameter_groups(module, 0.1, ("2.weight", "1.bias"))
    found = [(group["freezable"], group["weight_decay"], group["adapt"], len(group["params"])) for group in groups]
    assert found == [(False, 0.1, True, 1), (False, 0.0, False, 3), (True, 0.1, True, 1), (True, 0.0, False, 1)]


@pytest.mark.parametrize("patience", [0, 1, 3])
@pytest.mark.parametrize(("factor", "rate"), [(0.1, 0.3), (0.5, 1e-3), (0.3, 3e-8)])
def test_plateau_decides_as_torchs_scheduler_does(patience: int, factor: float, rate: float) -> None:
    """Losses that fall, stay, rise, and fall by less than the threshold; the last rate is too small to be lowered."""
    optim = OptimConfig(lr=rate, schedule="plateau", plateau_factor=factor, plateau_patience=patience)
    torchs = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(torchs, factor=factor, patience=patience)
    random, losses = np.random.default_rng(patience), list[float]()
    where = {"batch_size": 8, "warmup_steps": 4, "total_steps": 99}
    rates = set()
    for step in range(4, 64):
        found = optim.learning_rate(step, **where, losses=losses)  # type: ignore[arg-type]
        assert found == torchs.param_groups[0]["lr"], losses
        rates.add(found)
        losses.append(float(random.choice([3.0 / step, 0.5, 0.5 * (1 - 0.9e-4), 1.0, float("nan")])))
        scheduler.step(losses[-1])
    assert len(rates) > 1
    assert optim.learning_rate(1, **where, losses=losses) == rate / 2, "it warms up first"  # type: ignore[arg-type]


def test_a_layers_rate_is_lower_by_its_depth(small_store: Path, gloo: Callable[[int], GlooPool]) -> None:
    """A step of Adam moves each parameter by a half of what it would, for each layer between it and the head."""
    config = small_config(
        small_store,
        method={"name": "supervised", "num_classes": 3},
        augment={"recipe": "weak"},
        optim={"name": "adam", "lr": 0.01, "layer_decay": 0.5, "weight_decay": 0.1, "warmup_epochs": 0},
    )
    flat = config.model_copy(update={"optim": config.optim.model_copy(update={"layer_decay": 1.0})})
    depths, whole = config.initial_method().depths(), gloo(2).run(moved, flat)[0]
    assert set(depths.values()) == {1, 2, 3, 4}
    for stage in (0, 1, 2, 3):
        engine = config.engine.model_copy(update={"zero_stage": stage})
        found = gloo(2).run(moved, config.model_copy(update={"engine": engine}))[0]
        for name, move in whole.items():
            expected = move * 0.5 ** depths.get(name, 0)
            assert (found[name] - expected).norm() <= 1e-3 * expected.norm(), name  # weights round by 6e-8


def moved(rank: int, size: int, config: RunConfig) -> dict[str, Tensor]:
    """Return what the first step of the engine subtracts from each parameter."""
    before = dict(smooth_method(config).named_parameters())
    after = train(rank, size, config, 0, 1).state.model
    return {name: weight.detach() - after[name] for name, weight in before.items()}


@pytest.mark.parametrize("name", methods.names())
def test_the_optimizer_has_every_parameter_once_and_no_slow_copy(name: str) -> None:
    """A slow copy and a queue follow rules of their own: weight decay would shrink them."""
    config = config_of(name)
    method = config.initial_method()
    groups = config.optim.build(method, method.freezable).param_groups
    optimized = [p for group in groups for p in group["params"]]
    assert len(optimized) == len(set(optimized))
    assert set(optimized) == set(method.parameters())
    assert not {key for key, _ in method.named_parameters()} & {key for key, _ in method.named_buffers()}
    assert set(method.freezable) <= {key for key, _ in method.named_parameters()}


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (torch.optim.Adam, {}),
        (torch.optim.AdamW, {}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (LARS, {"momentum": 0.9, "trust_coefficient": 0.001}),
    ],
)
def test_an_eager_optimizer_computes_bit_for_bit_what_its_class_does(
    kind: type[torch.optim.Optimizer], given: dict[str, float]
) -> None:
    ends = []
    for made in (kind, eager(kind)):
        torch.manual_seed(0)
        module, called = nn.Linear(4, 3), list[object]()
        optimizer = made([{"params": [*module.parameters()], "lr": 0.1, "weight_decay": 0.01}], **given)  # type: ignore[call-arg]
        optimizer.register_step_pre_hook(lambda *given, called=called: called.append(given[0]))
        for _ in range(3):
            optimizer.zero_grad()
            module(torch.randn(5, 4)).square().sum().backward()
            optimizer.step()
        assert called == [optimizer] * 3
        momenta = [value for state in optimizer.state.values() for value in state.values() if value is not None]
        ends.append([*module.state_dict().values(), *momenta])
    assert len(ends[0]) >= 4
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
