"""Built-in backbones: CIFAR ResNets, a wide ResNet, a four-layer ConvNet, an autoencoder's encoder.

The functions that return layers, and what these use, need torch and nothing else: ``ssl_dist.export`` copies their
source into a file that stands alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ssl_dist.backbones.base import ConvolutionalBackbone
from ssl_dist.backbones.catalogue import STEM_STRIDES, Stem

_BLOCKS = {"resnet8": 1, "resnet20": 3}  # in each stage


def build(name: str, *, stem: Stem, width: int | None, dropout: float) -> ConvolutionalBackbone:
    """Build one of ``catalogue.BUILT_IN``; options are those of ``backbones.build``."""
    function, options, pool = recipe(name, stem=stem, width=width, dropout=dropout)
    layers = function(**options)
    if name == "convnet":
        return ConvolutionalBackbone(layers, 128, stride=16, pool=pool)
    if name == "autoencoder":
        return ConvolutionalBackbone(layers, 128, stride=8, pool=pool)
    is_wide = name == "wrn45-2"
    blocks = [number for number, layer in enumerate(layers) if isinstance(layer, (BasicBlock, PreActivationBlock))]
    stages = blocks[::5] if is_wide else blocks[:: _BLOCKS[name]]
    channels, stride = (128, 8) if is_wide else (4 * options["width"], 4)
    return _initialised(ConvolutionalBackbone(layers, channels, stride * STEM_STRIDES[stem], pool=pool, stages=stages))


def recipe(
    name: str, *, stem: Stem, width: int | None, dropout: float
) -> tuple[Callable[..., list[nn.Module]], dict[str, Any], int]:
    """Return what makes a backbone's layers: a function, its arguments, and the side of the pooled map."""
    if name == "convnet":
        return convnet, {"dropout": dropout}, 2
    if name == "autoencoder":
        return autoencoder, {}, 4
    if name == "wrn45-2":
        return wide_resnet, {"stem": stem}, 1
    return cifar_resnet, {"blocks": _BLOCKS[name], "width": width or 16, "stem": stem}, 1


def stem_layers(stem: str, channels: int) -> tuple[nn.Conv2d, list[nn.Module]]:
    """Build a ResNet's first convolution, and the pooling after it (an empty list: none)."""
    kernel, stride = {"standard": (7, 2), "small": (3, 1), "half": (3, 2)}[stem]
    convolution = nn.Conv2d(3, channels, kernel, stride, padding=kernel // 2, bias=False)
    return convolution, [nn.MaxPool2d(3, 2, padding=1)] if stem == "standard" else []


def cifar_resnet(blocks: int, width: int, stem: str) -> list[nn.Module]:
    """Build three stages of basic blocks; the shortcut has a 1 x 1 convolution where the shape changes."""
    convolution, pool = stem_layers(stem, width)
    layers, channels = [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True), *pool], width
    for stage in range(3):
        for block in range(blocks):
            out, stride = width << stage, 2 if stage and not block else 1
            shortcut = None
            if stride != 1 or out != channels:
                shortcut = nn.Sequential(Shortcut(channels, out, stride), nn.BatchNorm2d(out))
            layers.append(BasicBlock(channels, out, stride, shortcut))
            channels = out
    return layers


class BasicBlock(nn.Module):
    """Residual block: a 3 x 3 convolution and BatchNorm, twice, beside a shortcut; its parts have torchvision's names.

    Source: He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385, figure 2.
    """

    def __init__(self, channels: int, out: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = downsample

    def forward(self, features: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(features)))))
        out += features if self.downsample is None else self.downsample(features)
        activated: Tensor = self.relu(out)
        return activated


class Shortcut(nn.Conv2d):
    """1 x 1 convolution; if its input has few channels, it takes every other pixel before and not while it convolves.

    The result is the same. oneDNN's gradient of a strided one with fewer channels than it computes at once, which are
    16 with AVX-512, writes beyond its memory (uxlfoundation/oneDNN, issue 6035).
    """

    def __init__(self, channels: int, out: int, stride: int) -> None:
        step = stride if channels < 16 else 1
        super().__init__(channels, out, 1, stride // step, bias=False)
        self._step = step

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input if self._step == 1 else input[..., :: self._step, :: self._step])


def wide_resnet(stem: str) -> list[nn.Module]:
    """Build four stages of five blocks, with 16, 32, 64 and 128 channels; the last three stages have stride 2.

    These are 45 convolutions: the stem, two in each block, and one on the skip of each stage's first block.
    """
    convolution, pool = stem_layers(stem, 16)
    layers, channels = [convolution, *pool], 16
    for stage in range(4):
        for block in range(5):
            is_first, out = block == 0, 16 << stage
            stride = 2 if stage and is_first else 1
            layers.append(PreActivationBlock(channels, out, stride, convolved_skip=is_first))
            channels = out
    return layers + activation(channels)


class PreActivationBlock(nn.Module):
    """Residual block: BatchNorm, LeakyReLU and a 3 x 3 convolution, twice, beside a skip.

    Source: He et al., "Identity Mappings in Deep Residual Networks", arXiv 1603.05027 (the order); Zagoruyko and
    Komodakis, "Wide Residual Networks", arXiv 1605.07146 (a convolution on the skip takes the activated input).
    """

    def __init__(self, channels: int, out: int, stride: int, convolved_skip: bool) -> None:
        super().__init__()
        self.activation = nn.Sequential(*activation(channels))
        self.residual = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, padding=1, bias=False),
            *activation(out),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
        )
        self.skip = nn.Conv2d(channels, out, 1, stride, bias=False) if convolved_skip else None

    def forward(self, features: Tensor) -> Tensor:
        activated = self.activation(features)
        skipped = features if self.skip is None else self.skip(activated)
        out: Tensor = skipped + self.residual(activated)
        return out


def activation(channels: int) -> list[nn.Module]:
    """Build the wide ResNet's normalisation and its nonlinearity."""
    return [nn.BatchNorm2d(channels), nn.LeakyReLU(0.1, inplace=True)]


def _initialised(network: ConvolutionalBackbone) -> ConvolutionalBackbone:
    """Initialise the network's convolutions for its ReLUs, or for its LeakyReLUs, which have one slope below 0."""
    slope = next((module.negative_slope for module in network.modules() if isinstance(module, nn.LeakyReLU)), 0.0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, slope, mode="fan_out", nonlinearity="leaky_relu")
    return network


def convnet(dropout: float) -> list[nn.Module]:
    """Build four blocks of conv 3 x 3 (128 channels, stride 2), ReLU, dropout; a 2 x 2 map makes 512 features."""
    layers: list[nn.Module] = []
    for channels in (3, 128, 128, 128):
        layers += [nn.Conv2d(channels, 128, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.Dropout(dropout)]
    return layers


def autoencoder() -> list[nn.Module]:
    """Build G-SimCLR's encoder for CIFAR-10, whose 4 x 4 map makes 2048 latents.

    It has three blocks of conv 3 x 3, BatchNorm, ReLU and max-pooling, with 32, 64 and 128 channels.
    """
    layers: list[nn.Module] = []
    for channels, out in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)]
        layers += [nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    return layers
