"""Tests of SimCLR: NT-Xent with its settings, and heads of one to three layers (tests/losses tests NT-Xent alone)."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ssl_dist.backbones import build
from ssl_dist.methods import Views
from ssl_dist.methods.simclr import SimCLR


def made(**settings: Any) -> SimCLR:
    torch.manual_seed(0)
    config = SimCLR.Config(**{"projection_hidden": 12, "projection_dim": 7, **settings})
    return SimCLR(build("resnet8", stem="half", width=4), config).double().train()


def reference(z: Tensor, temperature: float, similarity: str) -> Tensor:
    """Compute equation 1 and algorithm 1, one view at a time.

    The loss is the mean over all 2N views of -log p, where p is the other view's share of the sum over all views but
    the view itself.
    """
    rows = z.transpose(0, 1).flatten(0, 1)  # [2N, D]: first views, then second ones
    rows = normalize(rows, dim=1) if similarity == "cosine" else rows
    n, losses = len(z), []
    for i, row in enumerate(rows):
        terms = {k: (row @ other / temperature).exp() for k, other in enumerate(rows) if k != i}
        losses.append(-(terms[(i + n) % (2 * n)] / torch.stack(list(terms.values())).sum()).log())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_value_and_gradient_are_the_papers(similarity: str, temperature: float) -> None:
    z = torch.randn(5, 2, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = (z * torch.linspace(0.5, 1.5, 5)[:, None, None] + 0.2).requires_grad_()
    ours = made(similarity=similarity, temperature=temperature).loss(z)
    expected = reference(z, temperature, similarity)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-12)
    [found], [wanted] = torch.autograd.grad(ours, z), torch.autograd.grad(expected, z)
    assert (found - wanted).norm() <= 1e-12 * wanted.norm()


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_head_has_as_many_layers_as_it_is_told(layers: int) -> None:
    method = made(projection_layers=layers)
    linear = [module for module in method.projection_head if isinstance(module, nn.Linear)]
    widths = [method.backbone.dim, *[12] * (layers - 1), 7]
    assert [(one.in_features, one.out_features) for one in linear] == list(itertools.pairwise(widths))
    assert sum(isinstance(module, nn.ReLU) for module in method.projection_head) == layers - 1
    assert made(projection_layers=layers, projection_hidden=None).projection_head[0].in_features == method.backbone.dim


def test_both_views_share_the_statistics_of_one_forward_pass() -> None:
    """The embeddings keep each view at its image and place."""
    method = made()
    crops = torch.rand(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    z = method.embed(Views((crops,), torch.full((3,), -1)))
    in_one_pass = method.projection_head(method.backbone(crops.flatten(0, 1)))
    assert z.shape == (3, 2, 7)
    torch.testing.assert_close(z.transpose(0, 1).flatten(0, 1), in_one_pass)
