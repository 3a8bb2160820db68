"""Tests of Barlow Twins' loss; test_feature_statistics.py has those that it shares with VICReg."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssl_dist import backbones
from ssl_dist.methods.barlow_twins import BarlowTwins

COLUMNS = torch.tensor([[1, 1, -1, -1], [1, -1, 1, -1]], dtype=torch.float64).T  # uncorrelated, variance 1


def small(**settings: object) -> BarlowTwins:
    config = BarlowTwins.Config(**{"projection_hidden": 24, "projection_dim": 6, **settings})
    torch.manual_seed(0)
    return BarlowTwins(backbones.build("resnet8", stem="half", width=4), config)


def embeddings(n: int = 11, dim: int = 6) -> Tensor:
    """Return [n, 2, dim] whose views differ in scale and shift."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    b = 1.7 * torch.randn(n, dim, generator=generator, dtype=torch.float64) + 0.9 * a - 0.3
    return torch.stack([a, b], dim=1).requires_grad_()


def reference(z: Tensor, weight: float = 0.0051, epsilon: float = 1e-5) -> Tensor:
    """Compute equations 1 and 2 number by number, with the epsilon of the authors' BatchNorm."""
    a, b = ((view - view.mean(0)) / (view.var(0, correction=0) + epsilon).sqrt() for view in z.unbind(1))
    total = torch.zeros((), dtype=z.dtype)
    for i in range(z.shape[2]):
        for j in range(z.shape[2]):
            correlation = (a[:, i] * b[:, j]).mean()
            total = total + ((1 - correlation) ** 2 if i == j else weight * correlation**2)
    return total


@pytest.mark.parametrize("weight", [0.0, 0.0051, 2.0])
@pytest.mark.parametrize("n", [2, 3, 11])
def test_loss_and_gradient_equal_the_papers(n: int, weight: float) -> None:
    z = embeddings(n)
    theirs, ours = reference(z, weight), small(redundancy_weight=weight).loss(z)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    [expected], [found] = torch.autograd.grad(theirs, z), torch.autograd.grad(ours, z)
    assert (found - expected).norm() <= 1e-10 * expected.norm()  # float64 sums in another order


@pytest.mark.parametrize(
    ("other", "loss"),
    [
        (COLUMNS, 0.0),  # C = 1
        (-COLUMNS, 2 * 2**2),  # C = -1
        (COLUMNS.flip(1), 2 * 1**2 + 0.0051 * 2),  # each feature is the other one
        (COLUMNS[:, :1].expand(4, 2), 0 + 1 + 0.0051),  # the first feature twice
        (torch.ones(4, 2, dtype=torch.float64), 2.0),  # collapsed: C = 0
    ],
)
def test_small_cases_by_hand(other: Tensor, loss: float) -> None:
    z = torch.stack([COLUMNS, 5 * other + 3], dim=1)
    assert small(projection_dim=2).loss(z).item() == pytest.approx(loss, abs=1e-4)  # epsilon


def test_collapsed_embeddings_give_the_number_of_features_and_a_finite_gradient() -> None:
    z = torch.full((9, 2, 6), 0.7, requires_grad=True)
    loss = small().loss(z)
    assert loss.item() == pytest.approx(6, abs=1e-4)
    assert torch.isfinite(torch.autograd.grad(loss, z)[0]).all()


def test_defaults_are_the_authors() -> None:
    heads = {"projection_layers": 3, "projection_hidden": 8192, "projection_dim": 8192}
    assert BarlowTwins.Config().model_dump() == {"name": "barlow_twins", "redundancy_weight": 0.0051, **heads}
