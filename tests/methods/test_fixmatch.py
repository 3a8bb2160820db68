"""Tests of FixMatch: its two losses, its threshold, and the numbers of labelled and unlabelled images."""

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
from tests.helpers import small_config, train, with_facts

K, LABELLED, OTHERS = 4, 3, 6


def made(threshold: float | None = None, weight: float = 1.0, sharpness: float = 1.0) -> Method:
    """Build the method in evaluation mode, where BatchNorm treats each image independently of the others."""
    torch.manual_seed(0)
    kind = methods.load("fixmatch")
    config = kind.Config(name="fixmatch", num_classes=K, threshold=threshold, unlabelled_weight=weight)  # type: ignore[call-arg]
    method = kind(build("resnet8", stem="half", width=4), config).double().eval()
    with torch.no_grad():
        method.classifier.weight.mul_(sharpness)  # type: ignore[operator, union-attr]
    return method


def some_views(seed: int = 1) -> Views:
    """Return images of very different scale, so that not all are predicted as one class."""
    generator = torch.Generator().manual_seed(seed)
    crops = torch.randn(2, LABELLED + OTHERS, 3, 16, 16, generator=generator, dtype=torch.float64)
    crops = crops * torch.linspace(0.1, 3, LABELLED + OTHERS)[:, None, None, None]
    labels = torch.cat([torch.randint(K, (LABELLED,), generator=generator), torch.full((OTHERS,), -1)])
    return Views((crops,), labels)


def probabilities(method: Method, image: Tensor) -> Tensor:
    logits: Tensor = method.classifier(method.backbone(image[None]))[0]  # type: ignore[operator]
    return logits.exp() / logits.exp().sum()


def reference(method: Method, batches: list[Views], threshold: float, weight: float) -> Tensor:
    """Compute equations 3 and 4 one image at a time."""
    supervised, unsupervised = [], []
    for views in batches:
        for weak, strong, label in zip(*views.stacked, views.labels.tolist(), strict=True):
            if label >= 0:
                supervised.append(-probabilities(method, weak)[label].log())
                continue
            q = probabilities(method, weak).detach()
            entropy = -probabilities(method, strong)[int(q.argmax())].log()
            unsupervised.append(entropy * float(q.max() >= threshold))
    return torch.stack(supervised).mean() + weight * torch.stack(unsupervised).mean()


@pytest.mark.parametrize(("threshold", "weight", "sharpness"), [(None, 1.0, 1.0), (0.6, 1.0, 8.0), (0.6, 2.5, 8.0)])
def test_value_and_gradient_are_the_papers(threshold: float | None, weight: float, sharpness: float) -> None:
    method = made(threshold, weight, sharpness)
    batches = [some_views(1), some_views(2)]
    expected = reference(method, batches, threshold or 0.0, weight)
    expected_grads = torch.autograd.grad(expected, list(method.parameters()))
    loss = method.loss(torch.cat([method(views) for views in batches]))
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=0)
    for grad, other in zip(torch.autograd.grad(loss, list(method.parameters())), expected_grads, strict=True):
        assert (grad - other).norm() <= 1e-10 * other.norm()


def test_the_threshold_leaves_out_predictions_that_are_not_confident() -> None:
    views = some_views()
    losses, labelled = made(sharpness=8.0)(views)[:, :, 0].unbind(1)
    assert labelled.tolist() == [1.0] * LABELLED + [0.0] * OTHERS
    assert (losses > 0).all()
    kept = made(0.6, sharpness=8.0)(views)[:, 0, 0]
    confidence = torch.stack([probabilities(made(sharpness=8.0), image).max() for image in views.stacked[0]])
    sure = (confidence >= 0.6) | (labelled == 1)
    assert 0 < sure[LABELLED:].sum() < OTHERS, "there are both kinds"
    assert torch.equal(kept, losses * sure)


def test_a_prediction_used_as_a_label_passes_no_gradient() -> None:
    method, views = made(), some_views()
    crops = views.stacked.clone().requires_grad_()
    method.loss(method(Views((crops,), views.labels))).backward()
    assert crops.grad is not None
    learns = crops.grad.abs().amax((2, 3, 4)) > 0  # [2, N]
    assert learns.tolist() == [[True] * LABELLED + [False] * OTHERS, [False] * LABELLED + [True] * OTHERS]


def test_losses_are_means_over_the_global_batch() -> None:
    losses, labelled = torch.tensor([1.0, 5.0, 9.0, 0.5, 1.5]), torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0])
    z = torch.stack([losses, labelled], dim=1)[:, :, None]
    assert made().loss(z).item() == pytest.approx((1 + 0.5) / 2 + (5 + 9 + 1.5) / 3)
    assert made(weight=0.0).loss(z).item() == pytest.approx(0.75)


def test_a_classifier_of_zeros_has_a_loss_of_twice_ln_k() -> None:
    for threshold, times in ((None, 2), (0.95, 1)):
        method = made(threshold)
        for parameter in method.classifier.parameters():  # type: ignore[union-attr]
            nn.init.zeros_(parameter)
        assert method.loss(method(some_views())).item() == pytest.approx(times * math.log(K), rel=1e-12)


def test_batch_norm_sees_all_images_of_a_micro_batch_at_once() -> None:
    method = made().train()
    seen: list[int] = []
    method.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    method(some_views())
    assert seen == [LABELLED + 2 * OTHERS], "weak views of all, strong ones of the unlabelled"


def test_a_micro_batch_may_have_no_labels() -> None:
    """A worker without a micro-batch has labels of -1 only."""
    views = some_views()
    z = made()(Views(views.crops, torch.full_like(views.labels, -1)))
    assert z.shape == (LABELLED + OTHERS, 2, 1)
    assert z.requires_grad


@pytest.mark.parametrize(("labelled", "others"), [(32, 32), (32, 64), (32, 160), (32, 640)])
def test_any_ratio_of_labelled_to_other_images(labelled: int, others: int) -> None:
    size = labelled + others
    batch = {"size": size, "micro": size // 2, "labelled": labelled}
    config = RunConfig.load("fixmatch-cifar10", {"batch": batch})
    assert config.num_labelled == labelled
    assert with_facts(config, 50_000).plan().steps_per_epoch == 50_000 / others


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"size": 96, "micro": 96}, r"batch\.labelled 0: method fixmatch learns from some labelled images"),
        ({"size": 96, "micro": 96, "labelled": 96}, r"batch\.labelled 96: .* less than batch\.size 96"),
        ({"size": 96, "micro": 32, "labelled": 32}, r"batch.labelled 32 must be a multiple of 3"),
    ],
)
def test_batches_without_either_kind_are_refused(batch: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig.load("fixmatch-cifar10", {"batch": batch})


def test_thresholds_outside_0_to_1_are_refused() -> None:
    for threshold in (0.0, 1.0, 1.5):
        with pytest.raises(ConfigError, match=r"method\.threshold"):
            RunConfig.load("fixmatch-cifar10", {"method.threshold": threshold})
    assert RunConfig.load("fixmatch-cifar10", {"method.threshold": 0.95}).flat()["method.threshold"] == 0.95


def test_there_are_no_pairs_for_the_collapse_monitor() -> None:
    assert made().pairs(torch.rand(3, 2, 1)) is None


@pytest.mark.slow  # tests/batteries asks it of every method
def test_it_learns(gloo: Callable[[int], GlooPool], small_store: Path) -> None:
    config = small_config(
        small_store,
        method={"name": "fixmatch", "num_classes": 3},
        augment={"recipe": "weak-strong", "jitter_p": 0.0, "blur_p": 0.0},
        batch={"size": 24, "micro": 12, "labelled": 8},
        optim__lr=0.05,
    )
    trace = gloo(1).run(train, config, 0, 20)[0]
    assert max(trace.losses[-4:]) < 0.6 * trace.losses[0]
