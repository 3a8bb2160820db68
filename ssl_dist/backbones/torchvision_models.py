"""Backbones from torchvision: its classification networks without their last linear layer.

``without_classifier`` and what it uses need torch and torchvision alone: ``ssl_dist.export`` copies their source.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ssl_dist.backbones.base import Backbone
from ssl_dist.backbones.built_in import stem_layers
from ssl_dist.backbones.catalogue import INCEPTIONS, ONE_SIZE, Stem
from ssl_dist.eager import compiler_put_off

with compiler_put_off():
    import torchvision


def build(name: str, *, stem: Stem, image_size: int | None) -> Backbone:
    """Build one of ``torchvision_names()``; transformers of one size are made for ``image_size`` (None: 224)."""
    fixed = (image_size or 224) if name.startswith(ONE_SIZE) else None
    network, dim, classifier = without_classifier(name, stem, **options_of(name, fixed))
    if name.startswith("mnasnet"):
        network = loadable(network)
    if stem != "standard":
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return Backbone(network, dim, fixed, classifier)


def options_of(name: str, image_size: int | None) -> dict[str, Any]:
    """Return torchvision's options of a network; ``image_size`` is None where it takes any size."""
    if name in INCEPTIONS:
        return {"aux_logits": False, "init_weights": True}  # one output; their own initial weights
    if image_size is None:
        return {}
    return {"input_size": (image_size, image_size)} if name.startswith("maxvit") else {"image_size": image_size}


def without_classifier(name: str, stem: str, **options: Any) -> tuple[Any, int, str]:
    """Build a network without its classifier; return it, the number of its features, and the classifier's name."""
    network = torchvision.models.get_model(name, weights=None, **options)
    dim, classifier = remove_classifier(network)
    if stem != "standard":
        network.conv1, _ = stem_layers(stem, 64)
        network.maxpool = nn.Identity()
    return network, dim, classifier


class MNASNet(torchvision.models.MNASNet):  # type: ignore[misc]
    """MNASNet that takes tensors as a file has them: torchvision's refuses those without a version beside them."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *others: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, {**local_metadata, "version": self._version}, *others)


def loadable(network: Any) -> Any:
    """Make torchvision's MNASNet one that takes tensors as a file has them."""
    network.__class__ = MNASNet
    return network


def remove_classifier(network: nn.Module) -> tuple[int, str]:
    """Replace the last linear layer by the identity, and return its number of inputs and its name.

    SqueezeNet has a 1 x 1 convolution in its place.
    """
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    name = linear[-1] if linear else [name for name, m in network.named_modules() if isinstance(m, nn.Conv2d)][-1]
    last: Any = network.get_submodule(name)
    network.set_submodule(name, nn.Identity())
    return int(last.in_features if linear else last.in_channels), name
