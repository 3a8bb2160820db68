"""SimCLR: two views of an image attract, all other views of the batch repel.

Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", arXiv 2002.05709.
"""

from __future__ import annotations

from typing import Literal

import pydantic
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssl_dist.backbones import Backbone
from ssl_dist.losses import nt_xent
from ssl_dist.methods.base import Method, MethodConfig


class SimCLR(Method):
    """Backbone, projection head (kept for pretraining only), NT-Xent."""

    class Config(MethodConfig):
        """Defaults are the paper's for ImageNet, but for the temperature (0.5 is its choice for CIFAR-10)."""

        name: Literal["simclr"] = "simclr"
        temperature: float = pydantic.Field(0.1, gt=0)
        similarity: Literal["cosine", "dot"] = "cosine"
        projection_layers: int = pydantic.Field(2, ge=1, le=3)
        projection_hidden: int | None = pydantic.Field(None, ge=1)  # None: the backbone's dim
        projection_dim: int = pydantic.Field(128, ge=1)

    config: Config

    def __init__(self, backbone: Backbone, config: SimCLR.Config) -> None:
        super().__init__(backbone, config)
        self.projection_head = projection_head(
            backbone.dim, config.projection_hidden or backbone.dim, config.projection_dim, config.projection_layers
        )

    def embed(self, views: Tensor) -> Tensor:
        """One forward pass of both views together: BatchNorm sees the 2N images of the micro-batch."""
        num_views, n = views.shape[:2]
        z = self.projection_head(self.backbone(views.flatten(0, 1)))  # [V * N, D]
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        embeddings: Tensor = z.view(num_views, n, -1).transpose(0, 1)
        return embeddings

    def loss(self, embeddings: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
        z_a, z_b = embeddings.unbind(1)
        config = self.config
        return nt_xent(z_a, z_b, temperature=config.temperature, similarity=config.similarity, group=group)


def projection_head(dim: int, hidden: int, out: int, num_layers: int) -> nn.Sequential:
    """Linear layers with BatchNorm and ReLU between them, none after the last, which has no bias."""
    layers: list[nn.Module] = []
    for _ in range(num_layers - 1):
        layers += [nn.Linear(dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)]
        dim = hidden
    return nn.Sequential(*layers, nn.Linear(dim, out, bias=False))
