"""SimCLR: two views of an image attract, all other views of the batch repel.

Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", arXiv 2002.05709.
"""

from __future__ import annotations

from typing import Literal

import pydantic
import torch.distributed as dist
from torch import Tensor, nn

from ssl_dist.backbones import Backbone
from ssl_dist.losses import nt_xent
from ssl_dist.methods.base import Method, MethodConfig, Views, embed_views, projection_head


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

    def embed(self, views: Views) -> Tensor:
        """One forward pass of both views together: BatchNorm sees the 2N images of the micro-batch."""
        return embed_views(nn.Sequential(self.backbone, self.projection_head), views.alike)

    def loss(self, embeddings: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
        z_a, z_b = embeddings.unbind(1)
        config = self.config
        return nt_xent(z_a, z_b, temperature=config.temperature, similarity=config.similarity, group=group)
