"""Tests of VICReg's loss and of docs/add-a-method.md; test_feature_statistics.py has those shared with Barlow Twins."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ssl_dist import backbones
from ssl_dist.methods.vicreg import VICReg

ROOT = Path(__file__).parents[2]
WEIGHTS = {"invariance_weight": 25.0, "variance_weight": 25.0, "covariance_weight": 1.0}


def small(**settings: object) -> VICReg:
    config = VICReg.Config(**{"projection_hidden": 24, "projection_dim": 6, **settings})
    torch.manual_seed(0)
    return VICReg(backbones.build("resnet8", stem="half", width=4), config)


def embeddings(n: int = 11, dim: int = 6) -> Tensor:
    """Return [n, 2, dim] whose views differ in scale and shift; standard deviations are above 1 and below."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(n, dim, generator=generator, dtype=torch.float64) * torch.linspace(0.2, 2, dim)
    b = 0.7 * torch.randn(n, dim, generator=generator, dtype=torch.float64) + 0.9 * a - 0.3
    return torch.stack([a, b], dim=1).requires_grad_()


def reference(z: Tensor, weights: dict[str, float] = WEIGHTS) -> Tensor:
    """Compute equations 1 to 4 and 6 number by number, with the mean over features of algorithm 1 in the invariance."""
    n, _, dim = z.shape
    terms = dict.fromkeys(weights, torch.zeros((), dtype=z.dtype))
    terms["invariance_weight"] = ((z[:, 0] - z[:, 1]) ** 2).mean()
    for view in z.unbind(1):
        for i in range(dim):
            hinge = (1 - (view[:, i].var() + 1e-4).sqrt()).clamp(min=0)
            terms["variance_weight"] = terms["variance_weight"] + hinge / dim
            for j in range(dim):
                if i != j:
                    covariance = (view[:, i] - view[:, i].mean()) @ (view[:, j] - view[:, j].mean()) / (n - 1)
                    terms["covariance_weight"] = terms["covariance_weight"] + covariance**2 / dim
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


@pytest.mark.parametrize("weights", [WEIGHTS, *({**dict.fromkeys(WEIGHTS, 0.0), name: 3.0} for name in WEIGHTS)])
@pytest.mark.parametrize("n", [2, 3, 11])
def test_loss_and_gradient_equal_the_papers(n: int, weights: dict[str, float]) -> None:
    z = embeddings(n)
    theirs, ours = reference(z, weights), small(**weights).loss(z)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    [expected], [found] = torch.autograd.grad(theirs, z), torch.autograd.grad(ours, z)
    assert (found - expected).norm() <= 1e-10 * expected.norm()  # float64 sums in another order


def test_small_cases_by_hand() -> None:
    columns = torch.tensor([[1, 1, -1, -1], [1, -1, 1, -1]], dtype=torch.float64).T  # each sums to 4 when squared

    def loss(a: Tensor, b: Tensor) -> float:
        return small(projection_dim=2).loss(torch.stack([a, b], dim=1)).item()

    assert loss(columns, columns) == 0  # equal views, variance 4 / 3, covariance 0
    assert loss(columns, columns + 2) == pytest.approx(25 * 4)
    double = columns[:, :1].expand(4, 2)
    assert loss(double, double) == pytest.approx(2 * (2 * (4 / 3) ** 2) / 2)
    narrow = columns * 0.75**0.5 / 2  # variance 1 / 4
    assert loss(narrow, narrow) == pytest.approx(25 * 2 * 0.5, rel=1e-3)  # epsilon


def test_collapsed_embeddings_cost_the_variance_and_have_a_finite_gradient() -> None:
    z = torch.full((9, 2, 6), 0.7, requires_grad=True)
    loss = small().loss(z)
    assert loss.item() == pytest.approx(25 * 2 * (1 - 0.01), rel=1e-5)  # 0.01: root of epsilon
    assert torch.isfinite(torch.autograd.grad(loss, z)[0]).all()


def test_defaults_are_the_papers() -> None:
    heads = {"projection_layers": 3, "projection_hidden": 8192, "projection_dim": 8192}
    assert VICReg.Config().model_dump() == {"name": "vicreg", **WEIGHTS, **heads}


def test_the_page_on_adding_a_method_shows_this_code() -> None:
    page = (ROOT / "docs" / "add-a-method.md").read_text()
    code = "\n".join((ROOT / "ssl_dist" / "methods" / name).read_text() for name in ("settings.py", "vicreg.py"))
    shown = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(shown) >= 3
    for block in shown:
        assert any(textwrap.indent(block, " " * depth) in code for depth in (0, 4, 8)), block
    recipe = (ROOT / "ssl_dist" / "config" / "recipes" / "vicreg-cifar10.yaml").read_text()
    [shown_recipe] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert all(line in recipe.splitlines() for line in shown_recipe.splitlines())
