"""Tests of Self-Classifier: its loss over the global batch, with several classifiers and several crops."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pydantic
import pytest
import torch
from torch import Tensor

from ssl_dist import backbones
from ssl_dist.methods import Views
from ssl_dist.methods.self_classifier import SelfClassifier
from tests.gloo import GlooPool

Pools = Callable[[int], GlooPool]
CLASSES = (6, 3)


def build(**settings: Any) -> SelfClassifier:
    config = SelfClassifier.Config(**{"classes": CLASSES, "projection_hidden": 8, "projection_dim": 5, **settings})
    torch.manual_seed(0)
    return SelfClassifier(backbones.build("resnet8", stem="half", width=4), config).double().train()


def embeddings(n: int, views: int = 2, classes: int = sum(CLASSES)) -> Tensor:
    """Return [n, views, classes] whose views differ in scale and shift."""
    z = torch.randn(n, views, classes, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return 0.3 * z * torch.linspace(1, 2, views)[:, None] + torch.linspace(0, 0.2, views)[:, None] * z[:, :, :1]


def reference(z: Tensor, classes: tuple[int, ...] = CLASSES, row: float = 0.1, column: float = 0.05) -> Tensor:
    """Compute the loss of section 3 (version 3) image by image, by Bayes' rule with p(x) = 1 / B and p(y) = 1 / C."""
    losses = []
    for cosines in z.split(classes, dim=2):
        b, num_views, c = cosines.shape
        for first in range(num_views):
            for second in range(num_views):
                if first == second or min(first, second) >= 2:
                    continue
                x_of_y = (cosines[:, first] / column).exp()
                x_of_y = x_of_y / x_of_y.sum(0)  # [B, C]
                y_of_x = (cosines[:, second] / row).exp()
                y_of_x = y_of_x / y_of_x.sum(1, keepdim=True)
                images = [
                    -(x_of_y[i] / x_of_y[i].sum() * (b / c * y_of_x[i] / y_of_x.sum(0)).log()).sum() for i in range(b)
                ]
                losses.append((torch.stack(images).mean(), c))
    heads = [torch.stack([loss for loss, c in losses if c == size]).mean() for size in classes]
    return torch.stack(heads).mean()


@pytest.mark.parametrize(("row", "column"), [(0.1, 0.05), (0.3, 0.3), (0.07, 1.0)])
@pytest.mark.parametrize(("n", "views"), [(2, 2), (11, 2), (11, 5)])
def test_loss_and_gradient_are_the_papers(n: int, views: int, row: float, column: float) -> None:
    z = embeddings(n, views).requires_grad_()
    theirs = reference(z, row=row, column=column)
    ours = build(row_temperature=row, column_temperature=column).loss(z)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    [found], [expected] = torch.autograd.grad(ours, z), torch.autograd.grad(theirs, z)
    assert (found - expected).norm() <= 1e-12 * expected.norm()  # float64 sums in another order


def test_two_images_and_two_classes_by_hand() -> None:
    """Both views have exp(logits) = [[3, 1], [1, 1]].

    Target: columns (3/4, 1/4) and (1/2, 1/2), then rows are scaled to sum to 1: (3/5, 2/5) and (1/3, 2/3).
    Prediction: rows (3/4, 1/4) and (1/2, 1/2), then columns are scaled to sum to 1: (3/5, 2/5) and (1/3, 2/3).
    """
    logits = torch.tensor([[3.0, 1.0], [1.0, 1.0]], dtype=torch.float64).log()
    loss = build(classes=(2,), row_temperature=1, column_temperature=1).loss(logits[:, None].expand(2, 2, 2))
    first = 3 / 5 * math.log(3 / 5) + 2 / 5 * math.log(1 / 3)
    second = 1 / 3 * math.log(2 / 5) + 2 / 3 * math.log(2 / 3)
    assert loss.item() == pytest.approx(-(first + second) / 2, rel=1e-12)


@pytest.mark.parametrize("classes", [2, 7])
@pytest.mark.parametrize("sure", [0.0, 0.1, 5.0])
def test_collapse_is_a_loss_of_ln_c(classes: int, sure: float) -> None:
    """All images have the same scores, which prefer one class strongly, slightly or not at all."""
    alike = torch.zeros(5, 2, classes, dtype=torch.float64)
    alike[:, :, 1] = sure
    assert build(classes=(classes,)).loss(alike).item() == pytest.approx(math.log(classes), rel=1e-12)


@pytest.mark.parametrize(("images", "classes", "lowest"), [(4, 4, 0.0), (12, 4, 0.0), (4, 12, math.log(3))])
def test_equal_and_certain_use_of_classes_has_the_lowest_loss(images: int, classes: int, lowest: float) -> None:
    """With more classes than images, each image has several classes to itself."""
    belongs = torch.arange(images)[:, None] % classes == torch.arange(classes) % images
    z = 10 * belongs.double()[:, None].expand(-1, 2, -1)
    method = build(classes=(classes,))
    assert method.loss(z).item() == pytest.approx(lowest, abs=1e-9)
    for seed in range(20):
        other = torch.randn(images, 2, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert method.loss(other[:, :1].expand(-1, 2, -1)).item() > lowest


def test_unequal_use_of_classes_costs() -> None:
    """Four images are in one class with certainty and two in the other: ln 2 minus the entropy of (4/6, 2/6)."""
    belongs = torch.tensor([0, 0, 0, 0, 1, 1])
    z = 10 * torch.nn.functional.one_hot(belongs).double()[:, None].expand(-1, 2, -1)
    entropy = -(4 / 6 * math.log(4 / 6) + 2 / 6 * math.log(2 / 6))
    assert build(classes=(2,)).loss(z).item() == pytest.approx(math.log(2) - entropy, rel=1e-9)


def test_classifiers_are_averaged() -> None:
    z = embeddings(11)
    apart = [build(classes=(size,)).loss(part) for size, part in zip(CLASSES, z.split(CLASSES, dim=2), strict=True)]
    assert build().loss(z).item() == pytest.approx(sum(loss.item() for loss in apart) / 2, rel=1e-12)


def test_targets_and_predictions_both_have_a_gradient() -> None:
    """No gradient is stopped: a view gets one as the target and as the prediction."""
    z = embeddings(11, classes=6)
    for fixed in (0, 1):
        learning = z[:, 1 - fixed].clone().requires_grad_()
        pair = [z[:, fixed], learning] if fixed == 0 else [learning, z[:, fixed]]
        [gradient] = torch.autograd.grad(build(classes=(6,)).loss(torch.stack(pair, dim=1)), learning)
        assert gradient.abs().max() > 0


def _local(rank: int, size: int, row_counts: list[int], scale: float) -> tuple[float, Tensor]:
    first = sum(row_counts[:rank])
    z = (scale * embeddings(sum(row_counts), 3)[first : first + row_counts[rank]]).requires_grad_()
    loss = build().loss(z)
    return loss.item(), torch.autograd.grad(3 * loss, z)[0]  # 3: the incoming gradient counts


@pytest.mark.parametrize("scale", [1.0, 0.01])
@pytest.mark.parametrize("row_counts", [[4, 7], [5, 0, 6], [0, 11]])
def test_uneven_and_empty_ranks_have_the_gradient_of_one_process(
    gloo: Pools, row_counts: list[int], scale: float
) -> None:
    results = gloo(len(row_counts)).run(_local, row_counts, scale)
    z = (scale * embeddings(11, 3)).requires_grad_()
    theirs = reference(z)
    [expected] = torch.autograd.grad(3 * theirs, z)
    assert len({loss for loss, _ in results}) == 1, "the same bits on every rank"
    assert results[0][0] == pytest.approx(theirs.item(), rel=1e-12)
    found = torch.cat([gradient for _, gradient in results])
    assert (found - expected).norm() <= 1e-12 * expected.norm()


def _far_apart(rank: int, size: int) -> float:
    z = embeddings(12).float()[rank::size] + 10 * rank  # the last rank's rows dominate the sums over columns
    return build(column_temperature=0.001, row_temperature=0.001).float().loss(z.requires_grad_()).item()


def test_small_temperatures_do_not_overflow(gloo: Pools) -> None:
    """Logits differ by 10,000, in float32."""
    method = build(column_temperature=0.001, row_temperature=0.001)
    z = embeddings(12).float().requires_grad_()
    loss = method.loss(z)
    assert loss.item() == pytest.approx(method.loss(z.double()).item(), rel=1e-3)
    assert torch.isfinite(torch.autograd.grad(loss, z)[0]).all()
    assert all(math.isfinite(loss) for loss in gloo(3).run(_far_apart))


def test_autocast_changes_nothing() -> None:
    method = build().float()
    z = embeddings(64).float().requires_grad_()
    given = Views((torch.rand(2, 6, 3, 16, 16),), torch.full((6,), -1))
    plain = method.loss(z)
    with torch.autocast("cpu", torch.bfloat16):
        cast = method.loss(z)
        cosines = method.embed(given)
    assert cosines.dtype == cast.dtype == torch.float32
    assert torch.equal(cast, plain)
    assert torch.equal(torch.autograd.grad(cast, z)[0], torch.autograd.grad(plain, z)[0])


def test_embeddings_are_cosines_with_every_classifiers_classes() -> None:
    method = build()
    crops = (torch.rand(2, 6, 3, 32, 32, dtype=torch.float64), torch.rand(3, 6, 3, 16, 16, dtype=torch.float64))
    given = Views(crops, torch.full((6,), -1))
    z = method.embed(given)
    assert z.shape == (6, 5, sum(CLASSES))
    assert method.num_targets == 0
    assert z.abs().max() <= 1
    with torch.no_grad():
        method.classifiers *= 3
    torch.testing.assert_close(method.embed(given), z)
    swapped = method.embed(Views((crops[0], crops[1].flip(0)), given.labels))
    torch.testing.assert_close(swapped[:, 2:], z[:, 2:].flip(1))


def test_settings_are_checked() -> None:
    for wrong in ({"classes": ()}, {"classes": (1,)}, {"row_temperature": 0}, {"column_temperature": -1}):
        with pytest.raises(pydantic.ValidationError):
            SelfClassifier.Config(**wrong)
