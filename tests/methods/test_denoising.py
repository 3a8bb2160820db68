"""Tests of the denoising autoencoder: its error, its noise, and the backbones and sizes that it takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ssl_dist import backbones, methods
from ssl_dist.config import ResolvedConfig, RunConfig
from ssl_dist.errors import ConfigError
from ssl_dist.methods import Method, Views
from tests.gloo import GlooPool
from tests.helpers import small_config, train


def made(noise: float = 0.1, backbone: str = "autoencoder") -> Method:
    torch.manual_seed(0)
    kind = methods.load("denoising")
    config = kind.Config(name="denoising", noise=noise)  # type: ignore[call-arg]
    return kind(backbones.build(backbone), config).double()


def some_views(num_views: int = 1, size: int = 32) -> Views:
    generator = torch.Generator().manual_seed(1)
    crops = torch.rand(num_views, 4, 3, size, size, generator=generator, dtype=torch.float64)
    return Views((crops * torch.linspace(0.3, 1, 4)[:, None, None, None],), torch.full((4,), -1))


def reference(method: Method, x: Tensor) -> Tensor:
    """Compute the mean over images, colours and pixels of (decoder(encoder(x + noise)) - x)^2."""
    decoded = method.decoder(method.backbone.map(x + 0.1 * torch.randn(x.shape, dtype=x.dtype)))  # type: ignore[operator]
    squares: Tensor = (decoded - x) ** 2
    return squares.sum() / x.numel()


@pytest.mark.parametrize("num_views", [1, 2])
def test_value_and_gradient_are_those_of_the_definition(num_views: int) -> None:
    method, views = made(), some_views(num_views)
    torch.manual_seed(7)
    expected = reference(method, views.stacked.flatten(0, 1))
    expected_grads = torch.autograd.grad(expected, list(method.parameters()))
    torch.manual_seed(7)
    z = method(views)
    assert z.shape == (4, num_views, 1)
    loss = method.loss(z)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for grad, other in zip(torch.autograd.grad(loss, list(method.parameters())), expected_grads, strict=True):
        assert (grad - other).norm() <= 1e-10 * other.norm()


def test_a_decoder_that_gives_grey_has_the_error_of_grey() -> None:
    method, views = made(), some_views()
    nn.init.zeros_(method.decoder[-2].weight)  # type: ignore[index, arg-type]
    nn.init.zeros_(method.decoder[-2].bias)  # type: ignore[index, arg-type]
    expected = ((views.stacked[0] - 0.5) ** 2).mean((1, 2, 3))  # the sigmoid of 0
    torch.testing.assert_close(method(views)[:, 0, 0], expected)


def test_noise_is_drawn_anew_and_from_the_generator() -> None:
    method, views = made().eval(), some_views()
    with torch.no_grad():
        torch.manual_seed(0)
        first, second = method(views), method(views)
        torch.manual_seed(0)
        again = method(views)
        assert torch.equal(first, again)
        assert not torch.equal(first, second)
        quiet = made(noise=0.0).eval()
        assert torch.equal(quiet(views), quiet(views))


def test_noise_has_its_standard_deviation_and_is_not_in_the_target() -> None:
    method, views = made(noise=0.3), some_views()
    given: list[torch.Tensor] = []
    method.backbone.body[0].register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))  # type: ignore[index, operator]
    method(views)
    noise = given[0] - views.stacked[0]
    assert abs(noise.mean()) < 0.01  # of 12,288 draws: 4 standard deviations
    assert noise.std().item() == pytest.approx(0.3, rel=0.03)


@pytest.mark.parametrize("name", backbones.with_map())
def test_every_backbone_with_a_map_is_decoded_to_the_size_of_its_images(name: str) -> None:
    method = made(backbone=name)
    z = method(some_views(size=64))
    method.loss(z).backward()
    assert [n for n, p in method.named_parameters() if p.grad is None] == []


def test_the_decoder_of_the_autoencoder_is_g_simclrs() -> None:
    widths = [(m.in_channels, m.out_channels) for m in made().decoder.modules() if isinstance(m, nn.Conv2d)]  # type: ignore[union-attr]
    assert widths == [(128, 128), (128, 64), (64, 32), (32, 3)]


def test_backbones_without_a_map_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"backbone resnet18 does not give: set backbone\.name to one of convnet"):
        RunConfig.load("denoising-cifar10", {"backbone": {"name": "resnet18"}})


def test_sizes_that_the_stride_does_not_divide_are_refused() -> None:
    message = r"autoencoder needs views whose side is a multiple of 8 px, and one has 36 px: .*size_px to 32"
    facts = {"num_images": 51, "num_samples": 51, "image_shape": [36, 36, 3]}
    for config, size in ((RunConfig, {"augment.size_px": 36}), (ResolvedConfig, {"facts": facts})):
        with pytest.raises(ConfigError, match=message):
            config.load("denoising-cifar10", size)


def test_there_are_no_pairs_for_the_collapse_monitor() -> None:
    assert made().pairs(torch.rand(3, 2, 1)) is None


@pytest.mark.slow
def test_it_learns_and_its_noise_does_not_depend_on_workers(gloo: Callable[[int], GlooPool], small_store: Path) -> None:
    settings = {"method": {"name": "denoising", "noise": 0.3}, "augment": {"recipe": "none"}, "optim__lr": 1.0}
    config = small_config(small_store, **settings)
    losses = gloo(1).run(train, config, 0, 30)[0].losses
    assert sum(losses[-4:]) < 0.65 * sum(losses[:4])
    assert gloo(2).run(train, config, 0, 3)[0].losses == pytest.approx(losses[:3], rel=1e-5)  # float32 sums
