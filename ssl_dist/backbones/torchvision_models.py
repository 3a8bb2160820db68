"""torchvision's classification networks without their last linear layer."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torchvision
from torch import nn

from ssl_dist.backbones.base import Backbone, Stem
from ssl_dist.backbones.own import stem_layers
from ssl_dist.errors import ConfigError

_FIXED = ("vit", "maxvit")  # made for images of one size
_ANY = ("swin", "efficientnet_v2")  # take smaller images than their weights' min_size says (measured)
_MAXVIT_STEP = 224  # 5 times halved, and the last map has windows of 7


def names() -> list[str]:
    found: list[str] = torchvision.models.list_models(module=torchvision.models)
    return found


def check(name: str, stem: Stem, image_sizes: Collection[int]) -> None:
    """Refuse what ``build`` could not make, or what would take no images of these sizes.

    Raises:
        ConfigError: see the messages.
    """
    if stem != "standard" and not _is_resnet(name):
        raise ConfigError(f"backbone {name} has no stem to choose (given {stem!r}): ResNets have")
    sizes = sorted(set(image_sizes))
    if name.startswith(_FIXED):
        step = _MAXVIT_STEP if name.startswith("maxvit") else int(name.rpartition("_")[2])
        if wrong := [size for size in sizes if size % step]:
            raise ConfigError(f"backbone {name} takes images of a multiple of {step} px: these have {wrong[0]}")
        if len(sizes) > 1:
            raise ConfigError(f"backbone {name} takes images of one size: these have {', '.join(map(str, sizes))} px")
    elif not name.startswith(_ANY):
        smallest = torchvision.models.get_model_weights(name).DEFAULT.meta["min_size"][0]
        if sizes and sizes[0] < smallest:
            raise ConfigError(f"backbone {name} takes images of {smallest} px or more: these have {sizes[0]}")


def build(name: str, *, stem: Stem, image_size: int | None) -> Backbone:
    """Any of ``names()``; transformers of a fixed size are made for ``image_size`` (None: 224)."""
    options: dict[str, Any] = {}
    fixed = (image_size or 224) if name.startswith(_FIXED) else None
    if fixed:
        options = {"input_size": (fixed, fixed)} if name.startswith("maxvit") else {"image_size": fixed}
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True}  # one output; their own initial weights
    network = torchvision.models.get_model(name, weights=None, **options)
    dim = _take_off_classifier(network)
    if stem != "standard":
        network.conv1, _ = stem_layers(stem, 64)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    return Backbone(network, dim, fixed)


def _is_resnet(name: str) -> bool:
    return name.startswith(("resnet", "resnext", "wide_resnet"))


def _take_off_classifier(network: nn.Module) -> int:
    """Put identity in place of the last linear layer (SqueezeNet's is a 1 x 1 convolution); returns what it took."""
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    name = linear[-1] if linear else [name for name, m in network.named_modules() if isinstance(m, nn.Conv2d)][-1]
    last: Any = network.get_submodule(name)
    network.set_submodule(name, nn.Identity())
    return int(last.in_features if linear else last.in_channels)
