"""Base classes of backbones: a network that gives one feature vector for an image, and one that also gives its map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_dist.backbones.catalogue import MeanStd
from ssl_dist.errors import ConfigError


class Backbone(nn.Module):
    """Network that turns images ``[N, 3, H, W]`` in [0, 1] into features ``[N, dim]``.

    Attributes:
        dim: number of features.
        image_size: the only size of images that the network takes, pixels a side; None: it takes any.
        normalisation: mean and standard deviation by which ``forward`` and ``map`` normalise images before the first
            layer, because the weights learned from such; None: the first layer gets pixels in [0, 1].
        classifier: torchvision's name of the layer that was removed from ``body``; None: none was.
    """

    def __init__(self, body: nn.Module, dim: int, image_size: int | None = None, classifier: str | None = None) -> None:
        super().__init__()
        self.body = body
        self.dim = dim
        self.image_size = image_size
        self.classifier = classifier
        self.normalisation: MeanStd | None = None

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

    def __init__(self, layers: list[nn.Module], channels: int, stride: int, pool: int = 1) -> None:
        super().__init__(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(pool), nn.Flatten()), channels * pool**2)
        self.channels, self.stride = channels, stride

    def map(self, images: Tensor) -> Tensor:
        """Return the last map before pooling, ``[N, channels, h, w]``; h = H / stride if that is a whole number."""
        features = _channels_last(self._normalise(images))
        for layer in list(self.body.children())[:-2]:
            features = layer(features)
        return features


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)  # twice as fast on CPU
