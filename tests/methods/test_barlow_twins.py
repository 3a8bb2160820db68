"""Barlow Twins: the paper's loss, over the global batch and with nothing of its size squared."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ssl_dist import backbones
from ssl_dist.methods import Views
from ssl_dist.methods.barlow_twins import BarlowTwins
from tests.gloo import GlooPool
from tests.methods.sizes import Largest

Pools = Callable[[int], GlooPool]
COLUMNS = torch.tensor([[1, 1, -1, -1], [1, -1, 1, -1]], dtype=torch.float64).T  # uncorrelated, variance 1


def small(**settings: object) -> BarlowTwins:
    config = BarlowTwins.Config(**{"projection_hidden": 24, "projection_dim": 6, **settings})
    torch.manual_seed(0)
    return BarlowTwins(backbones.build("resnet8", stem="half", width=4), config)


def embeddings(n: int = 11, dim: int = 6) -> Tensor:
    """[n, 2, dim] whose views differ in scale and shift."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    b = 1.7 * torch.randn(n, dim, generator=generator, dtype=torch.float64) + 0.9 * a - 0.3
    return torch.stack([a, b], dim=1).requires_grad_()


def reference(z: Tensor, weight: float = 0.0051, epsilon: float = 1e-5) -> Tensor:
    """Equations 1 and 2, number by number, with the epsilon of the authors' BatchNorm."""
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


def test_autocast_changes_nothing() -> None:
    z = embeddings(64).detach().float().requires_grad_()
    plain = small().loss(z)
    with torch.autocast("cpu", torch.bfloat16):
        cast = small().loss(z)
    assert cast.dtype == torch.float32
    assert torch.equal(cast, plain)
    assert torch.equal(torch.autograd.grad(cast, z)[0], torch.autograd.grad(plain, z)[0])


def test_nothing_is_larger_than_the_embeddings_or_the_features_squared() -> None:
    z = embeddings(300)
    with Largest() as largest:
        small().loss(z).backward()
    assert largest.elements == z.numel()  # 300 * 2 * 6; the batch squared is 90,000


def _local(rank: int, size: int, shares: list[int]) -> tuple[float, Tensor]:
    first = sum(shares[:rank])
    z = embeddings(sum(shares)).detach()[first : first + shares[rank]].requires_grad_()
    loss = small().loss(z)
    return loss.item(), torch.autograd.grad(loss, z)[0]


@pytest.mark.parametrize("shares", [[4, 7], [5, 0, 6]])
def test_uneven_and_empty_shares_have_the_gradient_of_one_process(gloo: Pools, shares: list[int]) -> None:
    results = gloo(len(shares)).run(_local, shares)
    z = embeddings(sum(shares))
    theirs = reference(z)
    [expected] = torch.autograd.grad(theirs, z)
    assert {loss for loss, _ in results} == {results[0][0]}, "the same on every rank, bit for bit"
    assert results[0][0] == pytest.approx(theirs.item(), rel=1e-12)
    found = torch.cat([grad for _, grad in results])
    assert (found - expected).norm() <= 1e-10 * expected.norm()


def test_views_have_batch_norm_statistics_of_their_own() -> None:
    method = small()
    crops = torch.rand(2, 6, 3, 16, 16) * torch.tensor([1.0, 0.4]).view(2, 1, 1, 1, 1)
    found = method.embed(Views((crops,), torch.full((6,), -1)))
    assert found.shape == (6, 2, 6)
    for view in (0, 1):
        torch.testing.assert_close(found[:, view], method.projection_head(method.backbone(crops[view])))


def test_settings_shape_the_head() -> None:
    def shapes(method: BarlowTwins) -> list[tuple[int, ...]]:
        return [tuple(m.weight.shape) for m in method.projection_head if isinstance(m, nn.Linear)]

    assert shapes(small()) == [(24, 16), (24, 24), (6, 24)]
    assert shapes(small(projection_layers=2, projection_hidden=20, projection_dim=10)) == [(20, 16), (10, 20)]
    default = BarlowTwins.Config()
    assert (default.redundancy_weight, default.projection_layers) == (0.0051, 3)
    assert (default.projection_hidden, default.projection_dim) == (8192, 8192)
