"""Built-in backbones: CIFAR ResNets, a wide ResNet, a four-layer ConvNet, an autoencoder's encoder."""

from __future__ import annotations

from torch import Tensor, nn

from ssl_dist.backbones.base import ConvolutionalBackbone
from ssl_dist.backbones.catalogue import STEM_STRIDES, Stem

_ONEDNN_BLOCK = 16  # channels that oneDNN computes at once with AVX-512
_SLOPE = 0.1  # slope below 0 of the wide ResNet's LeakyReLU


def build(name: str, *, stem: Stem, width: int | None, dropout: float) -> ConvolutionalBackbone:
    """Build one of ``catalogue.BUILT_IN``; options are those of ``backbones.build``."""
    if name == "convnet":
        return _convnet(dropout)
    if name == "autoencoder":
        return _autoencoder()
    if name == "wrn45-2":
        return _wide_resnet(stem)
    return _cifar_resnet({"resnet8": 1, "resnet20": 3}[name], width or 16, stem)


def stem_layers(stem: Stem, channels: int) -> tuple[nn.Conv2d, list[nn.Module]]:
    """Build a ResNet's first convolution, and the pooling after it (an empty list: none)."""
    kernel, stride = {"standard": (7, 2), "small": (3, 1), "half": (3, 2)}[stem]
    convolution = nn.Conv2d(3, channels, kernel, stride, padding=kernel // 2, bias=False)
    return convolution, [nn.MaxPool2d(3, 2, padding=1)] if stem == "standard" else []


def _cifar_resnet(blocks: int, width: int, stem: Stem) -> ConvolutionalBackbone:
    """Build three stages of basic blocks; the shortcut has a 1 x 1 convolution where the shape changes."""
    convolution, pool = stem_layers(stem, width)
    layers, channels = [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True), *pool], width
    stages = [len(layers) + blocks * stage for stage in range(3)]
    for stage in range(3):
        for block in range(blocks):
            out, stride = width << stage, 2 if stage and not block else 1
            shortcut = None
            if stride != 1 or out != channels:
                shortcut = nn.Sequential(_shortcut(channels, out, stride), nn.BatchNorm2d(out))
            layers.append(BasicBlock(channels, out, stride, shortcut))
            channels = out
    return _initialised(ConvolutionalBackbone(layers, channels, 4 * STEM_STRIDES[stem], stages=stages))


class BasicBlock(nn.Module):
    """Residual block: a 3 x 3 convolution and BatchNorm, twice, beside a shortcut.

    Its parts have torchvision's names, but torchvision is not imported: that takes seconds.

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


def _shortcut(channels: int, out: int, stride: int) -> nn.Conv2d:
    if channels < _ONEDNN_BLOCK:
        return _NarrowShortcut(channels, out, stride)
    return nn.Conv2d(channels, out, 1, stride, bias=False)


class _NarrowShortcut(nn.Conv2d):
    """1 x 1 convolution that applies its stride to the image before it, and gives the same result.

    oneDNN's gradient of a strided one with few channels writes beyond its memory (uxlfoundation/oneDNN, issue 6035).
    """

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__(channels, out, 1, bias=False)
        self._step = stride

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input[..., :: self._step, :: self._step])


def _wide_resnet(stem: Stem) -> ConvolutionalBackbone:
    """Build four stages of five blocks, with 16, 32, 64 and 128 channels; the last three stages have stride 2.

    These are 45 convolutions: the stem, two in each block, and one on the skip of each stage's first block.
    """
    convolution, pool = stem_layers(stem, 16)
    layers, channels = [convolution, *pool], 16
    stages = [len(layers) + 5 * stage for stage in range(4)]
    for stage in range(4):
        for block in range(5):
            is_first, out = block == 0, 16 << stage
            stride = 2 if stage and is_first else 1
            layers.append(PreActivationBlock(channels, out, stride, convolved_skip=is_first))
            channels = out
    layers += _activation(channels)
    return _initialised(ConvolutionalBackbone(layers, channels, 8 * STEM_STRIDES[stem], stages=stages), _SLOPE)


class PreActivationBlock(nn.Module):
    """Residual block: BatchNorm, LeakyReLU and a 3 x 3 convolution, twice, beside a skip.

    Source: He et al., "Identity Mappings in Deep Residual Networks", arXiv 1603.05027 (the order); Zagoruyko and
    Komodakis, "Wide Residual Networks", arXiv 1605.07146 (a convolution on the skip takes the activated input).
    """

    def __init__(self, channels: int, out: int, stride: int, convolved_skip: bool) -> None:
        super().__init__()
        self.activation = nn.Sequential(*_activation(channels))
        self.residual = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, padding=1, bias=False),
            *_activation(out),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
        )
        self.skip = nn.Conv2d(channels, out, 1, stride, bias=False) if convolved_skip else None

    def forward(self, features: Tensor) -> Tensor:
        activated = self.activation(features)
        skipped = features if self.skip is None else self.skip(activated)
        out: Tensor = skipped + self.residual(activated)
        return out


def _activation(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels), nn.LeakyReLU(_SLOPE, inplace=True)]


def _initialised(network: ConvolutionalBackbone, slope: float = 0.0) -> ConvolutionalBackbone:
    """Initialise the network's convolutions for (Leaky)ReLUs of this slope below 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, slope, mode="fan_out", nonlinearity="leaky_relu")
    return network


def _convnet(dropout: float) -> ConvolutionalBackbone:
    """Build four blocks of conv 3 x 3 (128 channels, stride 2), ReLU, dropout; a 2 x 2 map makes 512 features."""
    layers: list[nn.Module] = []
    for channels in (3, 128, 128, 128):
        layers += [nn.Conv2d(channels, 128, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.Dropout(dropout)]
    return ConvolutionalBackbone(layers, 128, stride=16, pool=2)


def _autoencoder() -> ConvolutionalBackbone:
    """Build G-SimCLR's encoder for CIFAR-10, whose 4 x 4 map makes 2048 latents.

    It has three blocks of conv 3 x 3, BatchNorm, ReLU and max-pooling, with 32, 64 and 128 channels.
    """
    layers: list[nn.Module] = []
    for channels, out in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)]
        layers += [nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    return ConvolutionalBackbone(layers, 128, stride=8, pool=4)
