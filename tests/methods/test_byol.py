"""Tests of BYOL: its loss, its predictions and targets, and the slow copy from step to step."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pydantic
import pytest
import torch
from torch import Tensor, nn

from ssl_dist import backbones
from ssl_dist.checkpoint import Checkpoints
from ssl_dist.collectives import World
from ssl_dist.data import SamplePlan
from ssl_dist.data.batches import Batches
from ssl_dist.methods import TrainingProgress, Views
from ssl_dist.methods.byol import BYOL
from ssl_dist.store import ImageStore
from ssl_dist.training.engine import Engine
from tests.gloo import GlooPool
from tests.helpers import Trace, differences, save, small_config, smooth_method

Pools = Callable[[int], GlooPool]
SMALL = {"name": "byol", "momentum": 0.9, "projection_hidden": 32, "projection_dim": 8}


def small(**settings: object) -> BYOL:
    torch.manual_seed(0)
    return BYOL(backbones.build("resnet8", stem="half", width=4), BYOL.Config(**{**SMALL, **settings}))


def views(n: int = 6) -> Views:
    """Return random views, of which the second is darker than the first."""
    crops = torch.rand(2, n, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return Views((crops * torch.tensor([1.0, 0.4]).view(2, 1, 1, 1, 1),), torch.full((n,), -1))


def reference(predicted: tuple[Tensor, Tensor], slow: tuple[Tensor, Tensor]) -> Tensor:
    """Compute equation 2 in both directions, image by image; both arguments are in the order of views 1 and 2."""
    total = torch.zeros((), dtype=torch.float64)
    for from_view, to_view in ((0, 1), (1, 0)):
        for q, z in zip(predicted[from_view], slow[to_view], strict=True):
            total = total + 2 - 2 * (q @ z) / (q.norm() * z.norm())
    return total / len(predicted[0])


def test_loss_and_gradient_equal_the_papers() -> None:
    generator = torch.Generator().manual_seed(0)
    q_1, q_2, z_1, z_2 = (torch.randn(7, 5, generator=generator, dtype=torch.float64) + k / 3 for k in range(4))
    predicted = (q_1.requires_grad_(), q_2.requires_grad_())
    theirs = reference(predicted, (z_1, z_2))
    ours = small().loss(torch.stack([q_1, q_2, z_2, z_1], dim=1))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    expected, found = torch.autograd.grad(theirs, predicted), torch.autograd.grad(ours, predicted)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-15)  # float64 sums in another order


@pytest.mark.parametrize(("turn", "loss"), [(0.0, 0.0), (0.5, 4.0), (1.0, 8.0)])
def test_right_unrelated_and_opposite_predictions(turn: float, loss: float) -> None:
    target = torch.tensor([1.0, 0.0], dtype=torch.float64)
    predicted = 3 * torch.tensor([math.cos(math.pi * turn), math.sin(math.pi * turn)], dtype=torch.float64)
    z = torch.stack([predicted, predicted, target, target])[None].repeat(5, 1, 1)
    assert small().loss(z).item() == pytest.approx(loss, abs=1e-12)


def test_each_view_predicts_the_slow_projection_of_the_other() -> None:
    method, given = small(), views()
    with torch.no_grad():  # apart from its copy
        for parameter in method.parameters():
            parameter.mul_(1.1)
    [crops] = given.crops
    projected = nn.Sequential(method.backbone, method.projection_head)
    found = method.embed(given)
    assert found.shape == (6, 4, 8)
    for view in (0, 1):
        torch.testing.assert_close(found[:, view], method.predictor(projected(crops[view])))
        torch.testing.assert_close(found[:, 2 + view], method.slow(crops[1 - view]))
        assert not torch.allclose(found[:, 2 + view], projected(crops[1 - view]), rtol=0.01)


def test_predictions_give_every_parameter_a_gradient_and_targets_none() -> None:
    method = small()
    parameters = list(method.parameters())
    z = method.embed(views())
    of_targets = torch.autograd.grad(z[:, 2:].square().sum(), parameters, retain_graph=True, materialize_grads=True)
    assert all(not grad.any() for grad in of_targets)
    assert all(grad.any() for grad in torch.autograd.grad(method.loss(z), parameters))
    assert method.num_targets == 2


def test_momentum_rises_to_one_as_half_a_cosine() -> None:
    method = small(momentum=0.996)
    rise = [method.momentum_at(TrainingProgress(step, 1000, 0.0)) for step in range(1001)]
    assert rise[0] == pytest.approx(0.996)
    assert rise[250] == pytest.approx(1 - 0.004 * (math.sqrt(0.5) + 1) / 2)
    assert rise[500] == pytest.approx(0.998)
    assert rise[1000] == 1
    assert rise == sorted(rise)


def test_the_slow_copy_follows_with_the_momentum_of_the_step() -> None:
    method = small()
    online = nn.Sequential(method.backbone, method.projection_head)
    expected = [parameter.detach().clone() for parameter in online.parameters()]
    for step in range(3):
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.add_(torch.randn(parameter.shape))
        method.after_step(torch.zeros(1, 4, 8), TrainingProgress(step, 3, 0.0))
        tau = 1 - (1 - 0.9) * (math.cos(math.pi * step / 3) + 1) / 2
        expected = [tau * old + (1 - tau) * new for old, new in zip(expected, online.parameters(), strict=True)]
        weights = dict(method.slow.module.named_buffers())
        for (name, _), value in zip(online.named_parameters(), expected, strict=True):
            torch.testing.assert_close(weights[name], value)


def test_the_slow_copy_is_in_checkpoints_and_not_in_the_optimizer() -> None:
    method = small()
    slow = [name for name in method.state_dict() if name.startswith("slow.")]
    learnt = [name for name, _ in method.named_parameters() if name.startswith(("backbone.", "projection_head."))]
    assert len(slow) > len(learnt)  # and BatchNorm's statistics
    assert not any(name.startswith("slow.") for name, _ in method.named_parameters())


def test_settings_shape_the_heads() -> None:
    method = small(projection_layers=3, projection_hidden=20, projection_dim=10)
    linear = [m.weight.shape for m in (*method.projection_head, *method.predictor) if isinstance(m, nn.Linear)]
    assert linear == [(20, 16), (20, 20), (10, 20), (20, 10), (10, 20)]
    default = BYOL.Config()
    assert (default.momentum, default.projection_layers) == (0.996, 2)
    assert (default.projection_hidden, default.projection_dim) == (4096, 256)
    with pytest.raises(pydantic.ValidationError, match="momentum"):
        BYOL.Config(momentum=1.1)


def steps(rank: int, size: int, store: Path, first: int, last: int, run: Path | None = None) -> Trace:
    """Train steps first .. last - 1 of six, from the checkpoint in ``run`` if there is one."""
    config = small_config(store, method=SMALL, augment={"recipe": "byol-small", "solarise_p": 0.0})
    found = Checkpoints(run).newest() if run else None
    world = World.current()
    engine = Engine(smooth_method(config), config, world, found.load() if found else None)
    batches = Batches(SamplePlan(config, ImageStore(store)), world, first, 6)
    results = [engine.step(batches.fetch(step), 0.1) for step in range(first, last)]
    trace = Trace([r.loss for r in results], [r.grad_norm for r in results], engine.state())
    if run and not found and rank == 0:
        save(trace.state, run, last, config)
    return trace


def test_a_resumed_run_is_the_same_run(small_store: Path, tmp_path: Path) -> None:
    whole = steps(0, 1, small_store, 0, 6)
    steps(0, 1, small_store, 0, 3, tmp_path)
    rest = steps(0, 1, small_store, 3, 6, tmp_path)
    assert whole.losses[3:] == rest.losses
    assert differences(whole.state.model, rest.state.model) == []


def test_two_workers_have_the_slow_copy_of_one(gloo: Pools, small_store: Path) -> None:
    one, two = (gloo(size).run(steps, small_store, 0, 4)[0] for size in (1, 2))
    assert two.losses == pytest.approx(one.losses, rel=1e-5)  # float32 sums in another order
    for name, tensor in one.state.model.items():
        torch.testing.assert_close(two.state.model[name], tensor, rtol=1e-4, atol=1e-5)
