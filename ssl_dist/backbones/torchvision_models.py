"""Backbones from torchvision: its classification networks without their last linear layer."""

from __future__ import annotations

from typing import Any

import torchvision
from torch import nn

from ssl_dist.backbones.base import Backbone
from ssl_dist.backbones.built_in import stem_layers
from ssl_dist.backbones.catalogue import INCEPTIONS, ONE_SIZE, Stem


def build(name: str, *, stem: Stem, image_size: int | None) -> Backbone:
    """Build one of ``torchvision_names()``; transformers of one size are made for ``image_size`` (None: 224)."""
    options: dict[str, Any] = {}
    fixed = (image_size or 224) if name.startswith(ONE_SIZE) else None
    if fixed:
        options = {"input_size": (fixed, fixed)} if name.startswith("maxvit") else {"image_size": fixed}
    if name in INCEPTIONS:
        options = {"aux_logits": False, "init_weights": True}  # one output; their own initial weights
    network = torchvision.models.get_model(name, weights=None, **options)
    dim, classifier = _remove_classifier(network)
    if stem != "standard":
        network.conv1, _ = stem_layers(stem, 64)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    return Backbone(network, dim, fixed, classifier)


def _remove_classifier(network: nn.Module) -> tuple[int, str]:
    """Replace the last linear layer by the identity, and return its number of inputs and its name.

    SqueezeNet has a 1 x 1 convolution in its place.
    """
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    name = linear[-1] if linear else [name for name, m in network.named_modules() if isinstance(m, nn.Conv2d)][-1]
    last: Any = network.get_submodule(name)
    network.set_submodule(name, nn.Identity())
    return int(last.in_features if linear else last.in_channels), name
