"""Backbones: their sizes, stems and shapes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssl_dist import backbones
from ssl_dist.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "dim", "parameters"),
    [
        # torchvision's counts less the 1000-way classifier; He et al. give ResNet-20 0.27 M
        ("resnet18", 512, 11_689_512 - 513_000),
        ("resnet34", 512, 21_797_672 - 513_000),
        ("resnet50", 2048, 25_557_032 - 2_049_000),
        ("resnet101", 2048, 44_549_160 - 2_049_000),
        ("convnet", 512, 3 * 9 * 128 + 128 + 3 * (128 * 9 * 128 + 128)),
    ],
)
def test_known_networks_have_their_known_sizes(name: str, dim: int, parameters: int) -> None:
    with torch.device("meta"):
        network = backbones.build(name)
    assert (network.dim, sum(p.numel() for p in network.parameters())) == (dim, parameters)


@pytest.mark.parametrize("name", backbones.NAMES)
@pytest.mark.parametrize("size", [32, 33])
def test_features_have_dim_and_every_weight_takes_part(name: str, size: int) -> None:
    torch.manual_seed(0)
    network = backbones.build(name)
    features = network(torch.rand(2, 3, size, size))
    assert features.shape == (2, network.dim)
    features.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize(("stem", "side"), [("small", 32), ("half", 16), ("standard", 8)])
@pytest.mark.parametrize("name", ["resnet18", "resnet8"])
def test_the_stem_sets_the_size_of_the_first_maps(name: str, stem: backbones.Stem, side: int) -> None:
    network = backbones.build(name, stem=stem)
    sides: list[int] = []
    first_block = next(m for m in network.modules() if isinstance(m, backbones.BasicBlock))
    first_block.register_forward_pre_hook(lambda _, inputs: sides.append(inputs[0].shape[-1]))
    network.eval()(torch.rand(1, 3, 32, 32))
    assert sides == [side]


def test_width_and_dropout_do_what_they_say() -> None:
    assert backbones.build("resnet8", width=32).dim == 128
    assert (
        sum(
            isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)
            for m in backbones.build("resnet20", stem="small").modules()
        )
        == 19
    )
    network = backbones.build("convnet", dropout=0.5)
    images = torch.rand(4, 3, 32, 32)
    assert not torch.equal(network(images), network(images))
    assert torch.equal(network.eval()(images), network(images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet19"}, "backbone 'resnet19'"),
        ({"name": "convnet", "stem": "small"}, "convnet has no stem"),
        ({"name": "resnet18", "width": 8}, "resnet18 has one width"),
        ({"name": "resnet18", "dropout": 0.1}, "resnet18 has no dropout"),
    ],
)
def test_options_that_a_backbone_does_not_have_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        backbones.build(**options)  # type: ignore[arg-type]
