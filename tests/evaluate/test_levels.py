"""Features of a level are those of the layers that it names, computed here by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.nn.functional import relu

from ssl_dist.config import ResolvedConfig
from ssl_dist.errors import RunError
from ssl_dist.evaluate.features import Levels
from ssl_dist.evaluate.levels import levels_of
from tests.helpers import resolved_config, small_config


def config_of(store: Path, layers: int) -> ResolvedConfig:
    return resolved_config(store, method__projection_layers=layers)


def test_the_head_ends_before_its_last_linear_layers(small_store: Path) -> None:
    config = config_of(small_store, 3)
    method = config.initial_method().eval()
    names = levels_of(config, ["head-2", "all"])
    assert names == ["backbone", "head-1", "head-2"]
    network, images = Levels(method, names), torch.rand(5, 3, 16, 16)
    features = network(images)
    assert network.dims == [32, 64, 64]
    x = method.backbone(images)
    first, norm, _, second, norm2, _, _ = cast(nn.Sequential, method.projection_head)
    assert isinstance(second, nn.Linear)
    hidden = relu(norm(first(x)))
    expected = [x, relu(norm2(second(hidden))), hidden]
    for found, wanted in zip(features.split(network.dims, 1), expected, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("layers", "level", "hint"),
    [(1, "head-1", "take --features backbone$"), (2, "head-2", "backbone or head-1$"), (2, "all", "head-2 leaves out")],
)
def test_a_head_that_is_too_short_is_named(small_store: Path, layers: int, level: str, hint: str) -> None:
    with pytest.raises(RunError, match=hint):
        levels_of(config_of(small_store, layers), [level])


@pytest.mark.parametrize(
    ("backbone", "layer", "shape"),
    [
        ({"name": "resnet18"}, "layer2", (128, 4, 4)),
        ({"name": "swin_t"}, "features.3", (4, 4, 192)),
        ({"name": "vit_b_32"}, "encoder.layers.encoder_layer_1", (2, 768)),
        ({"name": "vgg11"}, "classifier.0", (4096,)),
    ],
)
def test_maps_and_patches_are_averaged(
    small_store: Path, backbone: dict[str, Any], layer: str, shape: tuple[int, ...]
) -> None:
    """A map counts as its mean over places, Swin's have channels last; of ViT's tokens the first is no patch."""
    config = small_config(small_store, backbone=backbone, augment__size_px=32)
    backbone_alone = config.initial_backbone().eval()
    seen: list[torch.Tensor] = []
    module = backbone_alone.body.get_submodule(layer)
    module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        backbone_alone(images)
        network = Levels(cast(Any, Method(backbone_alone)), [f"layer {layer}"])
        found = network(images)
    assert seen[0].shape[1:] == shape
    if len(shape) == 3:
        expected = seen[0].flatten(1, 2).mean(1) if shape[0] == shape[1] else seen[0].flatten(2).mean(2)
    else:
        expected = seen[0][:, 1] if len(shape) == 2 else seen[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # means are summed in other orders
    assert network.dims == [found.shape[1]]


class Method:
    """Stands in for a method: it has a backbone, and no head is asked for."""

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone = backbone
