"""A denoising autoencoder: the backbone's map of a noisy image is decoded to the image without noise.

Sources: Vincent et al., "Extracting and Composing Robust Features with Denoising Autoencoders", ICML 2008; the fully
convolutional network and its noise are G-SimCLR's, arXiv 2009.12007, which clusters the latents into pseudo-labels.
"""

from __future__ import annotations

from typing import Literal

import pydantic
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssl_dist.backbones import Backbone, ConvolutionalBackbone
from ssl_dist.collectives import RowCounts, sum_over_ranks
from ssl_dist.methods.base import Method, MethodConfig, Views

_LEAST_CHANNELS = 8  # of the decoder


class Denoising(Method):
    """Encoder and a decoder that doubles the map until it is as large as the image."""

    class Config(MethodConfig):
        """Defaults are those of G-SimCLR's code."""

        name: Literal["denoising"] = "denoising"
        noise: float = pydantic.Field(0.01, ge=0)  # standard deviation, of pixels in [0, 1]

    config: Config
    backbone: ConvolutionalBackbone
    needs_map = True
    num_views = (1, None)

    def __init__(self, backbone: Backbone, config: Denoising.Config) -> None:
        super().__init__(backbone, config)
        assert isinstance(backbone, ConvolutionalBackbone), "the config refuses others"
        self.decoder = _decoder(backbone.channels, backbone.stride)

    def embed(self, views: Views) -> Tensor:
        """The mean squared error of each view's pixels, ``[N, V, 1]``; noise is drawn anew for each step."""
        images = views.alike.flatten(0, 1)  # [V * N, 3, S, S]
        decoded: Tensor = self.decoder(self.backbone.map(images + self.config.noise * torch.randn_like(images)))
        assert decoded.shape == images.shape, "the config refuses images that are no multiple of the map's stride"
        wide = decoded.to(torch.promote_types(decoded.dtype, torch.float32))
        errors = (wide - images).square().mean((1, 2, 3))  # [V * N]
        return errors.view(len(views.alike), -1, 1).transpose(0, 1)

    def loss(self, embeddings: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
        """The mean over the pixels of the global batch."""
        return sum_over_ranks(embeddings.sum(), group) / (RowCounts.of(embeddings, group).total * embeddings.shape[1])

    def pairs(self, embeddings: Tensor) -> None:
        return None


def _decoder(channels: int, stride: int) -> nn.Sequential:
    """``[N, channels, h, w]`` -> ``[N, 3, stride * h, stride * w]`` in [0, 1]; channels are halved as the map doubles,
    but for the first time."""
    layers: list[nn.Module] = []
    given = channels
    for doubling in range(stride.bit_length() - 1):
        out = max(_LEAST_CHANNELS, channels >> doubling)
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(given, out, 3, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(out), nn.ReLU()]
        given = out
    return nn.Sequential(*layers, nn.Conv2d(given, 3, 3, padding=1), nn.Sigmoid())
