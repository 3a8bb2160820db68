"""Denoising autoencoder: a decoder reconstructs an image from the backbone's map of the image with noise.

Sources: Vincent et al., "Extracting and Composing Robust Features with Denoising Autoencoders", ICML 2008. The fully
convolutional network and its noise are G-SimCLR's (arXiv 2009.12007), which clusters the latents into pseudo-labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_dist.backbones import Backbone, ConvolutionalBackbone
from ssl_dist.methods.base import LossMethod, Views
from ssl_dist.methods.settings import DenoisingConfig

_LEAST_CHANNELS = 8  # fewest channels of a hidden layer of the decoder


class Denoising(LossMethod):
    """Backbone, and a decoder that doubles the map's side until it equals the image's."""

    Config = DenoisingConfig
    config: DenoisingConfig
    backbone: ConvolutionalBackbone

    def __init__(self, backbone: Backbone, config: DenoisingConfig) -> None:
        super().__init__(backbone, config)
        assert isinstance(backbone, ConvolutionalBackbone), "RunConfig refuses other backbones"
        self.decoder = _decoder(backbone.channels, backbone.stride)

    def embed(self, views: Views) -> Tensor:
        """Return the mean squared error of each view's pixels, ``[N, V, 1]``; noise is drawn anew at each call."""
        images = views.stacked.flatten(0, 1)  # [V * N, 3, S, S]
        decoded: Tensor = self.decoder(self.backbone.map(images + self.config.noise * torch.randn_like(images)))
        assert decoded.shape == images.shape, "RunConfig refuses sizes that the map's stride does not divide"
        wide = decoded.to(torch.promote_types(decoded.dtype, torch.float32))
        errors = (wide - images).square().mean((1, 2, 3))  # [V * N]
        return errors.view(len(views.stacked), -1, 1).transpose(0, 1)


def _decoder(channels: int, stride: int) -> nn.Sequential:
    """Build the decoder, ``[N, channels, h, w]`` -> ``[N, 3, stride * h, stride * w]`` in [0, 1].

    Each stage doubles the map's side and halves its channels; the first stage keeps the channels.
    """
    layers: list[nn.Module] = []
    given = channels
    for doubling in range(stride.bit_length() - 1):
        out = max(_LEAST_CHANNELS, channels >> doubling)
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(given, out, 3, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(out), nn.ReLU()]
        given = out
    return nn.Sequential(*layers, nn.Conv2d(given, 3, 3, padding=1), nn.Sigmoid())
