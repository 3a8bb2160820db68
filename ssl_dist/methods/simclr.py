"""SimCLR: two views of an image attract each other and repel all other views of the batch.

Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", arXiv 2002.05709.
"""

from __future__ import annotations

from typing import Literal

import pydantic
from torch import Tensor

from ssl_dist.collectives import Group
from ssl_dist.losses import nt_xent
from ssl_dist.methods.base import Views, embed_views
from ssl_dist.methods.projection import ProjectionConfig, ProjectionMethod


class SimCLR(ProjectionMethod):
    """Backbone, projection head, NT-Xent.

    The head's last layer is linear, as in the paper. Google's code has BatchNorm after it too (docs/differences.md).
    """

    class Config(ProjectionConfig):
        """Settings of SimCLR.

        Defaults are the paper's for ImageNet, except the temperature (the paper takes 0.5 for CIFAR-10).
        """

        name: Literal["simclr"] = "simclr"
        temperature: float = pydantic.Field(0.1, gt=0)
        """Temperature by which similarities are divided, greater than 0."""
        similarity: Literal["cosine", "dot"] = "cosine"
        """Similarity of two embeddings: their cosine, or their dot product."""

    config: Config

    def embed(self, views: Views) -> Tensor:
        """Return embeddings ``[N, 2, D]`` from one forward pass: BatchNorm sees the 2N images of the micro-batch."""
        return embed_views(self.encoder, views.stacked)

    def loss(self, outputs: Tensor, group: Group = None) -> Tensor:
        """Compute NT-Xent of the two views (equation 1)."""
        z_a, z_b = outputs.unbind(1)
        config = self.config
        return nt_xent(z_a, z_b, temperature=config.temperature, similarity=config.similarity, group=group)
