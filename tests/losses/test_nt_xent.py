"""Tests of NT-Xent against the paper's formula in float64, in one process and over ranks with unequal rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from benchmarks.contenders import LOSSES
from benchmarks.traffic import Traffic
from ssl_dist.errors import ConfigError
from ssl_dist.losses import nt_xent, nt_xent_tiles
from tests.gloo import GlooPool

Pools = Callable[[int], GlooPool]


def reference(z_a: Tensor, z_b: Tensor, temperature: float | Tensor, similarity: str = "cosine") -> Tensor:
    """Compute equation 1 of arXiv 2002.05709 as one matrix over the rows of [z_a; z_b]."""
    n = len(z_a)
    z = torch.cat([z_a, z_b])
    if similarity == "cosine":
        z = normalize(z, dim=1)
    logits = (z @ z.T / temperature).masked_fill(torch.eye(2 * n, dtype=torch.bool), -torch.inf)
    return cross_entropy(logits, torch.arange(2 * n).roll(n))


def embeddings(n: int, dim: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return float64 views that differ in scale and shift."""
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


def test_an_equal_image_elsewhere_is_a_negative() -> None:
    z_a, z_b = embeddings(6)
    doubled = [torch.cat([z, z[:2]]) for z in (z_a, z_b)]
    assert relative(nt_xent(*doubled, temperature=0.2), reference(*doubled, 0.2)) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [0.005, 0.011, 0.07, 0.5, 1.0])
def test_every_dtype_is_exact_at_every_temperature(dtype: torch.dtype, temperature: float) -> None:
    z_a, z_b = (z.detach().to(dtype).requires_grad_() for z in embeddings(300, dim=16))
    loss = nt_xent(z_a, z_b, temperature=temperature)
    found = torch.autograd.grad(loss, (z_a, z_b))
    exact = [z.detach().double().requires_grad_() for z in (z_a, z_b)]
    theirs = reference(*exact, temperature)
    assert loss.dtype == torch.float32
    assert abs(loss.item() - theirs.item()) <= 1e-4  # float32 logits of up to 1 / t = 200 round to 1e-5
    unit = torch.finfo(dtype).eps if dtype != torch.float32 else 1e-5 / temperature  # exp turns 1e-7 / t into a factor
    for ours, expected in zip(found, torch.autograd.grad(theirs, exact), strict=True):
        assert relative(ours.double(), expected) <= unit


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [50.0, 100.0, 200.0])
def test_logits_of_up_to_200_keep_the_loss(dtype: torch.dtype, scale: float) -> None:
    z_a, z_b = (z.detach() for z in embeddings(64, dim=16))
    longest = torch.cat([z_a, z_b]).norm(dim=1).max()
    z_a, z_b = (((z * scale**0.5) / longest).to(dtype) for z in (z_a, z_b))
    exact = reference(z_a.double(), z_b.double(), 1.0, "dot")
    assert abs(nt_xent(z_a, z_b, temperature=1.0, similarity="dot").item() - exact.item()) <= 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [0.005, 1.0])
@pytest.mark.parametrize("fill", [0.0, 1.0, 60000.0, 1e-7])
def test_collapsed_embeddings_give_the_log_of_the_number_of_others(
    dtype: torch.dtype, temperature: float, fill: float
) -> None:
    z_a, z_b = (torch.full((5, 8), fill, dtype=dtype, requires_grad=True) for _ in range(2))
    loss = nt_xent(z_a, z_b, temperature=temperature)
    assert abs(loss.item() - math.log(9)) <= 1e-4
    for grad in torch.autograd.grad(loss, (z_a, z_b)):
        assert torch.isfinite(grad).all()


@pytest.mark.parametrize("temperature", [0.05, 0.1])
def test_views_that_agree_keep_the_digits_of_their_gradient(temperature: float) -> None:
    """Late in training the loss is near 0, and a plain float32 formula loses the gradient in 1 - 1."""
    generator = torch.Generator().manual_seed(0)
    z_a = torch.randn(256, 64, generator=generator, dtype=torch.float64)
    views = [z_a, z_a + 0.1 * torch.randn(256, 64, generator=generator, dtype=torch.float64)]
    exact = [view.requires_grad_() for view in views]
    theirs = reference(*exact, temperature)
    expected = torch.autograd.grad(theirs, exact)
    single = [view.detach().float().requires_grad_() for view in views]
    ours = nt_xent(*single, temperature=temperature)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-4)
    for found, one in zip(torch.autograd.grad(ours, single), expected, strict=True):
        assert relative(found.double(), one) <= 1e-5 / temperature  # float32 logits of up to 1 / t


def test_autocast_changes_nothing() -> None:
    z_a, z_b = (z.detach().float().requires_grad_() for z in embeddings(64))
    plain = torch.autograd.grad(nt_xent(z_a, z_b, temperature=0.07), (z_a, z_b))
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent(z_a, z_b, temperature=0.07)
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(loss, (z_a, z_b)), plain, strict=True))


def _row_counts(world_size: int) -> list[int]:
    """Return unequal numbers of rows; with three ranks or more, one has none."""
    return {1: [11], 2: [4, 7], 3: [5, 0, 6], 4: [1, 6, 0, 4]}[world_size]


def _mine(rank: int, size: int) -> list[Tensor]:
    row_counts = _row_counts(size)
    first = sum(row_counts[:rank])
    views = embeddings(sum(row_counts))
    return [z.detach()[first : first + row_counts[rank]].requires_grad_() for z in views]


def _local(rank: int, size: int, similarity: str, temperature: float, tile_rows: int) -> tuple[float, Tensor, Tensor]:
    mine = _mine(rank, size)
    with mock.patch.dict(nt_xent_tiles.TILE_BYTES, cpu=tile_rows**2 * 8):
        loss = nt_xent(mine[0], mine[1], temperature=temperature, similarity=similarity)
        grad_a, grad_b = torch.autograd.grad(3 * loss, mine)  # 3: the incoming gradient counts
    return loss.item(), grad_a, grad_b


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("tile_rows", [1, 3, 4, 100])
@pytest.mark.parametrize("temperature", [0.1, 0.002])  # logits within 20, which share a shift, and within 1000
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_gathered_gradient_equals_one_process(
    gloo: Pools, world_size: int, temperature: float, tile_rows: int, similarity: str
) -> None:
    results = gloo(world_size).run(_local, similarity, temperature, tile_rows)
    z_a, z_b = embeddings(sum(_row_counts(world_size)))
    theirs = reference(z_a, z_b, temperature, similarity)
    expected = torch.autograd.grad(3 * theirs, (z_a, z_b))
    losses = {loss for loss, _, _ in results}
    assert len(losses) == 1, "the loss is the same on every rank, bit for bit"
    assert abs(losses.pop() - theirs.item()) <= 1e-12 * theirs.item()
    for view in (0, 1):
        found = torch.cat([result[1 + view] for result in results])
        assert relative(found, expected[view]) <= 1e-12  # float64 sums in another order


def _learnt(rank: int, size: int, similarity: str) -> Tensor:
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    z_a, z_b = _mine(rank, size)
    loss = nt_xent(z_a, z_b, temperature=temperature, similarity=similarity)
    return torch.autograd.grad(loss, temperature)[0]


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_learnt_temperature_has_its_gradient_summed_over_ranks(gloo: Pools, world_size: int, similarity: str) -> None:
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    theirs = reference(*embeddings(sum(_row_counts(world_size))), temperature, similarity)
    [expected] = torch.autograd.grad(theirs, temperature)
    found = torch.stack(gloo(world_size).run(_learnt, similarity)).sum()
    assert relative(found, expected) <= 1e-12


def _sent(rank: int, size: int, name: str) -> tuple[float, list[str], list[str]]:
    """Return (bytes sent per byte of local embeddings and other rank, collectives forward, collectives backward)."""
    z_a, z_b = (torch.randn(32, 128, requires_grad=True) for _ in range(2))
    with Traffic(size) as sent:
        loss = LOSSES[name](z_a, z_b, 0.1)
        forward = list(sent.calls)
        loss.backward()
    return sent.bytes / ((size - 1) * 2 * z_a.numel() * 4), forward, sent.calls[len(forward) :]


@pytest.mark.parametrize("world_size", [2, 3, pytest.param(8, marks=pytest.mark.slow)])
def test_ranks_send_their_embeddings_once_and_nothing_in_the_backward_pass(gloo: Pools, world_size: int) -> None:
    for ratio, forward, backward in gloo(world_size).run(_sent, "ours"):
        assert 1 < ratio <= 1.02
        assert forward == ["_allgather_base_"] * 3  # counts, embeddings, log-sum-exps
        assert backward == []


def test_traffic_sees_what_others_send_in_the_backward_pass(gloo: Pools) -> None:
    [(ratio, _, backward), _] = gloo(2).run(_sent, "solo-learn")
    assert ratio >= 3
    assert backward == ["allreduce_"]


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
