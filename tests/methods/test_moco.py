"""Tests of MoCo v2: its loss, queue, slow encoder and shuffling."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_dist import backbones
from ssl_dist.methods import TrainingProgress, Views
from ssl_dist.methods.moco import MoCo

NOW = TrainingProgress(0, 10, 0.0)


def build(**settings: Any) -> MoCo:
    torch.manual_seed(0)
    backbone = backbones.build("resnet8", stem="half", width=4)
    config = MoCo.Config(**{"queue": 7, "projection_dim": 5, "projection_hidden": 8, **settings})
    return MoCo(backbone, config).double().train()


def embeddings(count: int, views: int) -> Tensor:
    z = torch.randn(count, views, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return z * torch.linspace(1, 2, views)[:, None] + 0.3


def reference(method: MoCo, q: Tensor, k: Tensor) -> Tensor:
    """Compute equation 1 of arXiv 1911.05722, one query after the other."""
    t, losses = method.config.temperature, []
    for query, key in zip(q, k, strict=True):
        terms = torch.stack([query @ key, *(query @ other for other in method.queue)]) / t
        losses.append(-torch.log(terms[0].exp() / terms.exp().sum()))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("temperature", [0.2, 0.07])
def test_the_loss_and_its_gradient_are_the_papers(symmetric: bool, temperature: float) -> None:
    method = build(symmetric=symmetric, temperature=temperature)
    z = embeddings(6, 4 if symmetric else 2).requires_grad_()
    if symmetric:
        expected = (reference(method, z[:, 0], z[:, 2]) + reference(method, z[:, 1], z[:, 3])) / 2
    else:
        expected = reference(method, z[:, 0], z[:, 1])
    ours = method.loss(z)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-12)
    [found], [wanted] = torch.autograd.grad(ours, z), torch.autograd.grad(expected, z)
    assert (found - wanted).norm() <= 1e-12 * wanted.norm()


def test_random_embeddings_have_about_the_loss_of_chance() -> None:
    method = build(queue=4096, temperature=1.0)
    z = torch.nn.functional.normalize(torch.randn(64, 2, 5, dtype=torch.float64), dim=2)
    assert method.loss(z).item() == pytest.approx(math.log(4097), abs=0.3)


def test_the_queue_takes_in_each_batch_once_and_wraps() -> None:
    method = build()
    first, second = embeddings(4, 2), embeddings(5, 2) + 1
    method.after_step(first, NOW)
    method.after_step(second, NOW)
    assert torch.equal(method.queue[:4], torch.cat([second[3:, 1], first[2:3, 1] * 0 + method.queue[2:4]])[:4])
    assert torch.equal(method.queue[4:7], second[:3, 1])
    assert torch.equal(method.queue[:2], second[3:, 1])
    assert torch.equal(method.queue[2:4], first[2:, 1])
    assert int(method.position) == 2


def test_a_batch_larger_than_the_queue_leaves_its_last_keys() -> None:
    method = build()
    z = embeddings(10, 2)
    method.after_step(z, NOW)
    assert {tuple(row.tolist()) for row in method.queue} == {tuple(row.tolist()) for row in z[3:, 1]}


def test_with_a_symmetric_loss_the_queue_takes_keys_of_one_view() -> None:
    method = build(symmetric=True)
    z = embeddings(3, 4)
    method.after_step(z, NOW)
    assert torch.equal(method.queue[:3], z[:, 2])


def test_the_slow_encoder_follows_with_its_momentum_and_takes_no_gradient() -> None:
    method = build(momentum=0.9)
    assert not [name for name, _ in method.named_parameters() if name.startswith("slow")]
    before = {name: value.clone() for name, value in method.slow.module.named_buffers()}
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(1.0)
    method.after_step(embeddings(3, 2), NOW)
    after = dict(method.slow.module.named_buffers())
    for name, parameter in method.encoder.named_parameters():
        assert torch.allclose(after[name], 0.9 * before[name] + 0.1 * parameter, atol=1e-12, rtol=0), name


def test_groups_of_a_query_and_of_its_key_share_one_image() -> None:
    method = build(batch_norm_groups=4)
    near, far = method._groups(16, torch.device("cpu"))
    assert sorted(torch.cat(near).tolist()) == sorted(torch.cat(far).tolist()) == list(range(16))
    for a in near:
        for b in far:
            assert len(set(a.tolist()) & set(b.tolist())) == 1
    assert len(build(batch_norm_groups=1)._groups(16, torch.device("cpu"))[0]) == 1


def test_embeddings_are_in_the_order_of_the_images_not_of_groups() -> None:
    """In evaluation mode BatchNorm ignores groups, so a query and its key of an untrained method are equal."""
    method = build(batch_norm_groups=3).eval()
    image = torch.rand(1, 8, 3, 16, 16, dtype=torch.float64)
    z = method.embed(Views((torch.cat([image, image]),), torch.full((8,), -1)))
    assert (z[:, 0] - z[:, 1]).abs().max() < 1e-12
    assert z.norm(dim=2).sub(1).abs().max() < 1e-12
