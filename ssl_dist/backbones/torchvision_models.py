"""Backbones from torchvision: its classification networks without their last linear layer."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torchvision
from torch import nn

from ssl_dist.backbones.base import Backbone, Stem
from ssl_dist.backbones.built_in import stem_layers
from ssl_dist.errors import ConfigError

_ONE_SIZE = ("vit", "maxvit")  # made for images of one size
_ANY_SIZE = ("swin", "efficientnet_v2")  # take smaller images than their weights' min_size says (measured)
_INCEPTIONS = ("googlenet", "inception_v3")
_MAXVIT_STEP = 224  # sides are halved five times, and the last map has windows of 7


def names() -> list[str]:
    """Return the names of torchvision's classification networks."""
    known: list[str] = torchvision.models.list_models(module=torchvision.models)
    return known


def check(name: str, stem: Stem, image_sizes: Collection[int]) -> None:
    """Check that ``build`` can make this network, and that it takes images of these sizes.

    Raises:
        ConfigError: the network has no such stem, or does not take one of the sizes.
    """
    if stem != "standard" and not _is_resnet(name):
        raise ConfigError(f"backbone {name} has no stem to choose (given {stem!r}): ResNets have")
    sizes = sorted(set(image_sizes))
    if name.startswith(_ONE_SIZE):
        step = _MAXVIT_STEP if name.startswith("maxvit") else int(name.rpartition("_")[2])
        if wrong := [size for size in sizes if size % step]:
            raise ConfigError(f"backbone {name} takes images of a multiple of {step} px: these have {wrong[0]}")
        if len(sizes) > 1:
            raise ConfigError(f"backbone {name} takes images of one size: these have {', '.join(map(str, sizes))} px")
    elif not name.startswith(_ANY_SIZE):
        smallest = torchvision.models.get_model_weights(name).DEFAULT.meta["min_size"][0]
        if sizes and sizes[0] < smallest:
            raise ConfigError(f"backbone {name} takes images of {smallest} px or more: these have {sizes[0]}")


def build(name: str, *, stem: Stem, image_size: int | None) -> Backbone:
    """Build one of ``names()``; transformers of one size are made for ``image_size`` (None: 224)."""
    options: dict[str, Any] = {}
    fixed = (image_size or 224) if name.startswith(_ONE_SIZE) else None
    if fixed:
        options = {"input_size": (fixed, fixed)} if name.startswith("maxvit") else {"image_size": fixed}
    if name in _INCEPTIONS:
        options = {"aux_logits": False, "init_weights": True}  # one output; their own initial weights
    network = torchvision.models.get_model(name, weights=None, **options)
    dim, classifier = _remove_classifier(network)
    if stem != "standard":
        network.conv1, _ = stem_layers(stem, 64)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    return Backbone(network, dim, fixed, classifier)


def imagenet_input(name: str) -> str:
    """Return the normalisation, one of ``KNOWN_INPUTS``, of the images that torchvision's weights learned from.

    Source: torchvision's ``WeightsEnum.transforms``; with weights, its GoogLeNet and Inception v3 convert what these
    give to [-1, 1] (``transform_input``), since the weights were ported from TensorFlow.
    """
    return "inception" if name in _INCEPTIONS else "imagenet"


def _is_resnet(name: str) -> bool:
    return name.startswith(("resnet", "resnext", "wide_resnet"))


def _remove_classifier(network: nn.Module) -> tuple[int, str]:
    """Replace the last linear layer by the identity, and return its number of inputs and its name.

    SqueezeNet has a 1 x 1 convolution in its place.
    """
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    name = linear[-1] if linear else [name for name, m in network.named_modules() if isinstance(m, nn.Conv2d)][-1]
    last: Any = network.get_submodule(name)
    network.set_submodule(name, nn.Identity())
    return int(last.in_features if linear else last.in_channels), name
