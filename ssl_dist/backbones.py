"""Backbones by name: images in, one feature vector an image out.

``stem`` is what stands before the residual stages: "standard", 7 x 7 stride 2 and max-pooling, for 96 px and more;
"small", 3 x 3 stride 1 and no pooling, for 32 px (SimCLR, arXiv 2002.05709, appendix B.9); "half", 3 x 3 stride 2 and
no pooling, a quarter of the work of "small".
"""

from __future__ import annotations

from typing import Literal

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from ssl_dist.errors import ConfigError

Stem = Literal["standard", "small", "half"]

_TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101")
NAMES = ("convnet", "resnet8", "resnet20", *_TORCHVISION)


class Backbone(nn.Module):
    """``[N, 3, H, W]`` in [0, 1] -> ``[N, dim]``."""

    def __init__(self, body: nn.Module, dim: int) -> None:
        super().__init__()
        self.body = body
        self.dim = dim

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.body(images.contiguous(memory_format=torch.channels_last))  # twice as fast on CPU
        return features


def build(name: str, *, stem: Stem = "standard", width: int | None = None, dropout: float = 0.0) -> Backbone:
    """A backbone with random weights.

    Args:
        name: one of NAMES. ``resnet8`` and ``resnet20`` are the CIFAR networks of He et al. (arXiv 1512.03385, section
            4.2): three stages of 1 and 3 basic blocks, with a 1 x 1 convolution on the shortcut where the shape
            changes. ``convnet`` is the four-layer network of this project's seed study.
        stem: see the module; the convnet has none and takes "standard" only.
        width: channels of the first stage of resnet8 and resnet20 (None: 16); only those take it.
        dropout: of the convnet, after each ReLU; only it takes one.

    Returns:
        A module with ``.dim``, the number of features.

    Raises:
        ConfigError: unknown name, or an option that the backbone does not have.
    """
    if name not in NAMES:
        raise ConfigError(f"backbone {name!r}: it is one of {', '.join(NAMES)}")
    if dropout and name != "convnet":
        raise ConfigError(f"backbone {name} has no dropout (given {dropout}): only convnet has")
    if width is not None and name not in ("resnet8", "resnet20"):
        raise ConfigError(f"backbone {name} has one width (given {width}): only resnet8 and resnet20 take another")
    if name == "convnet":
        if stem != "standard":
            raise ConfigError(f"backbone convnet has no stem to choose (given {stem!r})")
        return _convnet(dropout)
    if name in _TORCHVISION:
        return _torchvision_resnet(name, stem)
    return _cifar_resnet({"resnet8": 1, "resnet20": 3}[name], width or 16, stem)


def _stem(stem: Stem, channels: int) -> list[nn.Module]:
    kernel, stride = {"standard": (7, 2), "small": (3, 1), "half": (3, 2)}[stem]
    convolution = nn.Conv2d(3, channels, kernel, stride, padding=kernel // 2, bias=False)
    pool: list[nn.Module] = [nn.MaxPool2d(3, 2, padding=1)] if stem == "standard" else []
    return [convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True), *pool]


def _torchvision_resnet(name: str, stem: Stem) -> Backbone:
    network: torchvision.models.ResNet = getattr(torchvision.models, name)()
    dim = network.fc.in_features
    network.fc = nn.Identity()
    if stem != "standard":
        network.conv1 = _stem(stem, 64)[0]
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    return Backbone(network, dim)


def _cifar_resnet(blocks: int, width: int, stem: Stem) -> Backbone:
    layers, channels = _stem(stem, width), width
    for stage in range(3):
        for block in range(blocks):
            out, stride = width << stage, 2 if stage and not block else 1
            shortcut = None
            if stride != 1 or out != channels:
                shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
            layers.append(BasicBlock(channels, out, stride, shortcut))
            channels = out
    body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return Backbone(body, channels)


def _convnet(dropout: float) -> Backbone:
    """Four blocks of conv 3 x 3 (128 channels, stride 2), ReLU, dropout; a 2 x 2 map, flattened: 512."""
    layers: list[nn.Module] = []
    for channels in (3, 128, 128, 128):
        layers += [nn.Conv2d(channels, 128, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.Dropout(dropout)]
    return Backbone(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten()), 512)
