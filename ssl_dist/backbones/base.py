"""Base classes of backbones: a network that gives one feature vector for an image, and one that also gives its map."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from ssl_dist.backbones.catalogue import MeanStd
from ssl_dist.errors import ConfigError

# Containers of torchvision's and timm's networks, whose children are parts of their own.
_OPENED = ("features", "classifier", "encoder", "layers", "heads", "trunk_output", "blocks", "stages")


class Backbone(nn.Module):
    """Network that turns images ``[N, 3, H, W]`` in [0, 1] into features ``[N, dim]``.

    Attributes:
        dim: number of features.
        image_size: the only size of images that the network takes, pixels a side; None: it takes any.
        normalisation: mean and standard deviation by which ``forward`` and ``map`` normalise images before the first
            layer, because the weights learned from such; None: the first layer gets pixels in [0, 1].
        classifier: torchvision's or timm's name of the layer that was removed from ``body``; None: none was.
    """

    def __init__(self, body: nn.Module, dim: int, image_size: int | None = None, classifier: str | None = None) -> None:
        super().__init__()
        self.body = body
        self.dim = dim
        self.image_size = image_size
        self.classifier = classifier
        self.normalisation: MeanStd | None = None

    def layers(self) -> list[list[str]]:
        """Return the names of the modules of each layer, from the input to the features; fine-tuning counts them.

        The parts of ``body`` are taken in their order. Each part with weights (of two dimensions or more) begins a
        layer, to which the parts without weights that follow belong, such as norms, dropout and pooling. A part is a
        child of ``body``, whole, however deep it is (a stage of a ResNet), except that torchvision's containers are
        opened: a layer of a VGG is a convolution, one of a ViT a block, one of a Swin a stage or a patch merging.
        """
        found: list[list[str]] = [[]]
        weighted = False
        for name, module in self._parts("body", self.body):
            has_weights = any(parameter.ndim > 1 for parameter in module.parameters())
            if weighted and self._begins_layer(name, has_weights):
                found.append([])
            found[-1].append(name)
            weighted |= has_weights
        return found

    def _parts(self, prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for name, child in module.named_children():
            if name in _OPENED and any(child.children()):
                yield from self._parts(f"{prefix}.{name}", child)
            else:
                yield f"{prefix}.{name}", child

    def _begins_layer(self, name: str, has_weights: bool) -> bool:
        return has_weights

    def depths(self) -> dict[str, int]:
        """Return how many layers lie between each parameter and the features, from 1 for those of the last layer.

        Parameters outside the parts of ``layers``, such as a ViT's class token, belong to the first layer.
        """
        layers, depths = self.layers(), dict[str, int]()
        for name, _ in self.named_parameters():
            inside = (number for number, parts in enumerate(layers) if name.startswith(tuple(f"{p}." for p in parts)))
            depths[name] = len(layers) - next(inside, 0)
        return depths

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if self.image_size not in (None, height) or self.image_size not in (None, width):
            raise ConfigError(
                f"a backbone made for images of {self.image_size} px was given {height} x {width}: give views"
                " (augment.size_px) and stored images (store build --size-px) one size"
            )
        features: Tensor = self.body(_channels_last(self._normalise(images)))
        return features

    def _normalise(self, images: Tensor) -> Tensor:
        if self.normalisation is None:
            return images
        # made anew: in the images' own precision, and not in the state, which weights of other sources must fit
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in self.normalisation)
        return (images - mean) / std


class ConvolutionalBackbone(Backbone):
    """Convolutional layers whose last map is pooled to ``pool`` x ``pool`` and flattened: dim = channels * pool**2.

    Attributes:
        channels: number of the map's channels.
        stride: pixels of the image per pixel of the map, along a side.
    """

    def __init__(
        self, layers: list[nn.Module], channels: int, stride: int, pool: int = 1, stages: Collection[int] = ()
    ) -> None:
        """
        Args:
            stages: numbers of the modules of ``layers`` at which its stages begin, where a stage is more than one.
        """
        super().__init__(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(pool), nn.Flatten()), channels * pool**2)
        self.channels, self.stride = channels, stride
        self._stages = {f"body.{number}" for number in stages}

    def _begins_layer(self, name: str, has_weights: bool) -> bool:
        return name in self._stages if self._stages else has_weights

    def map(self, images: Tensor) -> Tensor:
        """Return the last map before pooling, ``[N, channels, h, w]``; h = H / stride if that is a whole number."""
        features = _channels_last(self._normalise(images))
        for layer in list(self.body.children())[:-2]:
            features = layer(features)
        return features


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)  # twice as fast on CPU
