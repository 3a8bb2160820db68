"""NT-Xent on a GPU equals the paper's formula in float64 on the CPU, value and gradient."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from ssl_dist.losses import nt_xent, nt_xent_tiles
from tests.gpu.runs import relative

pytestmark = pytest.mark.gpu

# Sums of float64 in another order; of float32, whose logits of up to 1/t are rounded by 1e-7/t, which exp turns into a
# relative error of a weight (tests/losses has the same bound on the CPU).
BOUND = {torch.float64: 1e-12, torch.float32: 1e-6}  # times 1/t


@pytest.fixture(autouse=True, params=["tiles", "kernels"])
def _sums(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute with torch tiles, and with Triton's kernels where the input is such that they take it."""
    monkeypatch.setattr(sys.modules["ssl_dist.losses.nt_xent"], "kernels_are_on", request.param == "kernels")


def reference(z_a: Tensor, z_b: Tensor, temperature: float, similarity: str) -> Tensor:
    """Compute equation 1 of arXiv 2002.05709 as one matrix over the rows of [z_a; z_b]."""
    n = len(z_a)
    z = torch.cat([z_a, z_b])
    z = normalize(z, dim=1) if similarity == "cosine" else z
    logits = (z @ z.T / temperature).masked_fill(torch.eye(2 * n, dtype=torch.bool), -torch.inf)
    return cross_entropy(logits, torch.arange(2 * n).roll(n))


def embeddings(n: int, dim: int, similarity: str) -> tuple[Tensor, Tensor]:
    """Return float64 views that differ in scale and shift; rows of length near 1 where no cosine makes them so."""
    generator = torch.Generator().manual_seed(n)
    z_a = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    z_b = 1.7 * torch.randn(n, dim, generator=generator, dtype=torch.float64) + 0.3 * z_a + 0.2
    scale = 1.0 if similarity == "cosine" else (2 * dim) ** -0.5
    return scale * z_a, scale * z_b


def compare(n: int, dim: int, dtype: torch.dtype, temperature: float, similarity: str, device: torch.device) -> None:
    given = [z.to(dtype) for z in embeddings(n, dim, similarity)]
    exact = [z.double().requires_grad_() for z in given]
    theirs = reference(*exact, temperature, similarity)
    mine = [z.to(device).requires_grad_() for z in given]
    ours = nt_xent(*mine, temperature=temperature, similarity=similarity)
    bound = BOUND[dtype] / temperature
    assert ours.device.type == device.type
    assert abs(ours.item() - theirs.item()) <= bound * max(1.0, theirs.item())
    found, expected = torch.autograd.grad(3 * ours, mine), torch.autograd.grad(3 * theirs, exact)  # 3: it must count
    assert all(one.dtype == dtype for one in found)
    assert max(relative(*both) for both in zip(found, expected, strict=True)) <= bound


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("temperature", [0.005, 0.07, 0.5])  # logits within 200, which have no common shift in float32
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "dim"), [(3, 3), (17, 6), (300, 128), (515, 64), (1000, 100)])
def test_value_and_gradient(
    n: int, dim: int, dtype: torch.dtype, temperature: float, similarity: str, device: torch.device
) -> None:
    """Rows that no power of two divides, and dimensions that are no multiple of what a kernel takes at once."""
    compare(n, dim, dtype, temperature, similarity, device)


def test_several_tiles_of_the_usual_size(device: torch.device) -> None:
    """On CUDA a tile of float32 has 4,096 rows."""
    compare(2300, 72, torch.float32, 0.1, "cosine", device)


@pytest.mark.parametrize("temperature", [0.005, 0.2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tile_rows", [2, 64, 130])
def test_tiles_of_any_size(
    tile_rows: int, dtype: torch.dtype, temperature: float, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["ssl_dist.losses.nt_xent"], "_sums", lambda y: nt_xent_tiles)
    monkeypatch.setitem(nt_xent_tiles.TILE_BYTES, device.type, tile_rows**2 * dtype.itemsize)
    compare(67 if tile_rows == 2 else 301, 20, dtype, temperature, "cosine", device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, device: torch.device) -> None:
    given = [z.to(dtype) for z in embeddings(300, 64, "cosine")]
    exact = [z.double().requires_grad_() for z in given]
    theirs = reference(*exact, 0.1, "cosine")
    mine = [z.to(device).requires_grad_() for z in given]
    with torch.autocast(device.type, torch.bfloat16):
        ours = nt_xent(*mine, temperature=0.1)
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    found, expected = torch.autograd.grad(ours, mine), torch.autograd.grad(theirs, exact)
    unit = torch.finfo(dtype).eps  # the gradient is rounded once, to the views' type
    assert max(relative(*both) for both in zip(found, expected, strict=True)) <= unit


def test_views_that_agree_keep_the_digits_of_their_gradient(device: torch.device) -> None:
    """Late in training the loss is near 0, and a plain float32 formula loses the gradient in 1 - 1."""
    z_a, noise = embeddings(256, 64, "cosine")
    given = [z_a.float(), (z_a + 0.1 * noise).float()]
    exact = [z.double().requires_grad_() for z in given]
    theirs = reference(*exact, 0.1, "cosine")
    mine = [z.to(device).requires_grad_() for z in given]
    ours = nt_xent(*mine, temperature=0.1)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-4)
    found, expected = torch.autograd.grad(ours, mine), torch.autograd.grad(theirs, exact)
    assert max(relative(*both) for both in zip(found, expected, strict=True)) <= 1e-4  # float32 logits of up to 1/t


def test_the_gradient_of_a_learnt_temperature(device: torch.device) -> None:
    z_a, z_b = embeddings(67, 20, "cosine")
    exact = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    theirs = reference(z_a, z_b, exact, "cosine")  # type: ignore[arg-type]
    mine = torch.tensor(0.3, dtype=torch.float64, device=device, requires_grad=True)
    ours = nt_xent(z_a.to(device), z_b.to(device), temperature=mine)
    [found], [expected] = torch.autograd.grad(ours, mine), torch.autograd.grad(theirs, exact)
    assert relative(found, expected) <= 1e-12
