"""Tests of supervised learning: cross-entropy with smoothed labels, over all views of the global batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ssl_dist import methods
from ssl_dist.backbones import build
from ssl_dist.config import RunConfig
from ssl_dist.errors import ConfigError
from ssl_dist.methods import Method, Views
from tests.gloo import GlooPool
from tests.helpers import small_config, train

K = 5


def made(label_smoothing: float = 0.0) -> Method:
    torch.manual_seed(0)
    kind = methods.load("supervised")
    config = kind.Config(name="supervised", num_classes=K, label_smoothing=label_smoothing)  # type: ignore[call-arg]
    return kind(build("resnet8", stem="half", width=4), config).double()


def some_views(num_views: int) -> Views:
    generator = torch.Generator().manual_seed(1)
    crops = torch.rand(num_views, 7, 3, 16, 16, generator=generator, dtype=torch.float64)
    return Views((crops * torch.linspace(0.3, 1, 7)[:, None, None, None],), torch.tensor([0, 4, 2, 2, 1, 4, 0]))


def reference(logits: Tensor, label: int, smoothing: float) -> Tensor:
    """Compute -sum_k q_k log p_k, where q has smoothing / K for each class and 1 - smoothing more for the label."""
    p = logits.exp() / logits.exp().sum()
    q = torch.full((K,), smoothing / K, dtype=torch.float64)
    q[label] += 1 - smoothing
    return -(q * p.log()).sum()


@pytest.mark.parametrize("num_views", [1, 2])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_value_and_gradient_are_those_of_the_definition(num_views: int, smoothing: float) -> None:
    method, views = made(smoothing), some_views(num_views)
    network: nn.Module = method.classifier  # type: ignore[assignment]
    logits = network(method.backbone(views.stacked.flatten(0, 1))).view(num_views, 7, K)
    expected = torch.stack(
        [reference(logits[view, n], int(views.labels[n]), smoothing) for view in range(num_views) for n in range(7)]
    ).mean()
    expected_grads = torch.autograd.grad(expected, list(method.parameters()))
    z = method(views)
    assert z.shape == (7, num_views, 1)
    loss = method.loss(z)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for grad, other in zip(torch.autograd.grad(loss, list(method.parameters())), expected_grads, strict=True):
        assert (grad - other).norm() <= 1e-10 * other.norm()


def test_a_classifier_of_zeros_has_a_loss_of_ln_k() -> None:
    for smoothing in (0.0, 0.3):
        method = made(smoothing)
        for parameter in method.classifier.parameters():  # type: ignore[union-attr]
            nn.init.zeros_(parameter)
        assert method.loss(method(some_views(1))).item() == pytest.approx(math.log(K), rel=1e-12)


def test_images_without_a_label_have_a_loss_of_0() -> None:
    """A worker without a micro-batch has such images; all images of a batch have labels."""
    views = some_views(2)
    z = made(0.1)(Views(views.crops, torch.full((7,), -1)))
    assert (z == 0).all()
    assert z.requires_grad


def test_the_mean_weighs_micro_batches_by_their_images() -> None:
    method = made()
    a, b = torch.rand(3, 2, 1, dtype=torch.float64), torch.rand(5, 2, 1, dtype=torch.float64)
    whole = method.loss(torch.cat([a, b]))
    assert whole.item() == pytest.approx((3 * method.loss(a).item() + 5 * method.loss(b).item()) / 8, rel=1e-12)


def test_there_are_no_pairs_for_the_collapse_monitor() -> None:
    assert made().pairs(torch.rand(3, 2, 1)) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 1}, r"method\.num_classes: .*greater than or equal to 2"),
        ({"num_classes": 3, "label_smoothing": 1.0}, r"method\.label_smoothing: .*less than 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(small_store: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small_config(small_store, method={"name": "supervised", **settings})


def test_labelled_images_of_a_batch_are_not_asked_for(small_store: Path) -> None:
    method = {"name": "supervised", "num_classes": 3}
    with pytest.raises(ConfigError, match=r"batch\.labelled 3: method supervised does not learn from some"):
        small_config(small_store, method=method, batch__labelled=3)
    assert RunConfig.load("supervised-cifar10").num_labelled == 256


@pytest.mark.slow  # tests/batteries asks it of every method
def test_it_learns(gloo: Callable[[int], GlooPool], small_store: Path) -> None:
    config = small_config(
        small_store, method={"name": "supervised", "num_classes": 3}, augment={"recipe": "weak"}, optim__lr=0.05
    )
    losses = gloo(1).run(train, config, 0, 20)[0].losses
    assert max(losses[-4:]) < 0.5 * losses[0]
