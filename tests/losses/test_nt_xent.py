"""NT-Xent against the paper's formula in float64, alone and gathered over unequal shares."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from ssl_dist.errors import ConfigError
from ssl_dist.losses import nt_xent
from tests.gloo import GlooPool


def reference(z_a: Tensor, z_b: Tensor, temperature: float, similarity: str = "cosine") -> Tensor:
    """Equation 1 of arXiv 2002.05709, dense: rows of [z_a; z_b], each row's positive is its other view."""
    n = len(z_a)
    z = torch.cat([z_a, z_b])
    if similarity == "cosine":
        z = normalize(z, dim=1)
    logits = (z @ z.T / temperature).masked_fill(torch.eye(2 * n, dtype=torch.bool), -torch.inf)
    return cross_entropy(logits, torch.arange(2 * n).roll(n))


def embeddings(n: int, dim: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Asymmetric float64 data: the views differ in scale and shift."""
    generator = torch.Generator().manual_seed(seed)
    z_a = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    z_b = 1.7 * torch.randn(n, dim, generator=generator, dtype=torch.float64) + 0.3 * z_a + 0.2
    return z_a.requires_grad_(), z_b.requires_grad_()


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).detach().norm() / theirs.detach().norm())


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("n", [2, 3, 17])
def test_loss_and_gradient_equal_the_papers(n: int, temperature: float, similarity: str) -> None:
    z_a, z_b = embeddings(n)
    theirs = reference(z_a, z_b, temperature, similarity)
    expected = torch.autograd.grad(theirs, (z_a, z_b))
    ours = nt_xent(z_a, z_b, temperature=temperature, similarity=similarity)
    found = torch.autograd.grad(ours, (z_a, z_b))
    assert relative(ours, theirs) <= 1e-12  # float64 sums in another order
    assert all(relative(a, b) <= 1e-12 for a, b in zip(found, expected, strict=True))


def test_tiles_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    z_a, z_b = embeddings(13)
    whole = torch.autograd.grad(nt_xent(z_a, z_b, temperature=0.1), (z_a, z_b))
    monkeypatch.setattr(sys.modules["ssl_dist.losses.nt_xent"], "TILE_BYTES", 26 * 8 * 3)  # three rows a tile
    tiled = torch.autograd.grad(nt_xent(z_a, z_b, temperature=0.1), (z_a, z_b))
    assert all(relative(a, b) <= 1e-14 for a, b in zip(tiled, whole, strict=True))


def test_an_equal_image_elsewhere_is_a_negative() -> None:
    z_a, z_b = embeddings(6)
    doubled = [torch.cat([z, z[:2]]) for z in (z_a, z_b)]
    assert relative(nt_xent(*doubled, temperature=0.2), reference(*doubled, 0.2)) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [0.005, 0.07, 1.0])
def test_low_temperatures_stay_finite_in_every_dtype(dtype: torch.dtype, temperature: float) -> None:
    z_a, z_b = (z.detach().to(dtype).requires_grad_() for z in embeddings(32, dim=16))
    loss = nt_xent(z_a, z_b, temperature=temperature)
    loss.backward()
    exact = reference(z_a.detach().double(), z_b.detach().double(), temperature)
    assert loss.dtype == torch.float32
    assert abs(loss.item() - exact.item()) <= 1e-5 * max(1.0, exact.item())  # float32 logits of up to 1 / t = 200
    assert z_a.grad is not None
    assert torch.isfinite(z_a.grad).all()


def _shares(world_size: int) -> list[int]:
    """Unequal, one of them empty where there are enough ranks."""
    return {1: [11], 2: [4, 7], 3: [5, 0, 6], 4: [1, 6, 0, 4]}[world_size]


def _local(rank: int, size: int, similarity: str) -> tuple[float, Tensor, Tensor]:
    shares = _shares(size)
    z_a, z_b = embeddings(sum(shares))
    first = sum(shares[:rank])
    mine = [z.detach()[first : first + shares[rank]].requires_grad_() for z in (z_a, z_b)]
    loss = nt_xent(mine[0], mine[1], temperature=0.1, similarity=similarity)
    grad_a, grad_b = torch.autograd.grad(3 * loss, mine)  # 3: the incoming gradient counts
    return loss.item(), grad_a, grad_b


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_gathered_gradient_equals_one_process(
    gloo: Callable[[int], GlooPool], world_size: int, similarity: str
) -> None:
    results = gloo(world_size).run(_local, similarity)
    z_a, z_b = embeddings(sum(_shares(world_size)))
    theirs = reference(z_a, z_b, 0.1, similarity)
    expected = torch.autograd.grad(3 * theirs, (z_a, z_b))
    losses = {loss for loss, _, _ in results}
    assert len(losses) == 1, "the loss is the same on every rank, bit for bit"
    assert abs(losses.pop() - theirs.item()) <= 1e-12 * theirs.item()
    for view in (0, 1):
        found = torch.cat([result[1 + view] for result in results])
        assert relative(found, expected[view]) <= 1e-12  # float64 sums in another order


def test_bad_arguments_are_refused() -> None:
    z_a, z_b = embeddings(3)
    with pytest.raises(ConfigError, match="temperature 0: it must be greater than 0"):
        nt_xent(z_a, z_b, temperature=0)
    with pytest.raises(ConfigError, match="similarity 'l2'"):
        nt_xent(z_a, z_b, temperature=1, similarity="l2")
    with pytest.raises(ConfigError, match=r"shapes \(3, 6\) and \(2, 6\)"):
        nt_xent(z_a, z_b[:2], temperature=1)
    with pytest.raises(ConfigError, match="2 images or more in the global batch, it has 1"):
        nt_xent(z_a[:1], z_b[:1], temperature=1)
