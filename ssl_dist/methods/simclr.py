"""SimCLR: two views of an image attract each other and repel all other views of the batch.

Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", arXiv 2002.05709.
"""

from __future__ import annotations

from torch import Tensor

from ssl_dist.collectives import Group
from ssl_dist.losses import nt_xent
from ssl_dist.methods.base import Views, embed_views
from ssl_dist.methods.projection import ProjectionMethod
from ssl_dist.methods.settings import SimCLRConfig


class SimCLR(ProjectionMethod):
    """Backbone, projection head, NT-Xent.

    The head's last layer is linear, as in the paper. Google's code has BatchNorm after it too (docs/differences.md).
    """

    Config = SimCLRConfig
    config: SimCLRConfig

    def embed(self, views: Views) -> Tensor:
        """Return embeddings ``[N, 2, D]`` from one forward pass: BatchNorm sees the 2N images of the micro-batch."""
        return embed_views(self.encoder, views.stacked)

    def loss(self, outputs: Tensor, group: Group = None) -> Tensor:
        """Compute NT-Xent of the two views (equation 1)."""
        z_a, z_b = outputs.unbind(1)
        config = self.config
        return nt_xent(z_a, z_b, temperature=config.temperature, similarity=config.similarity, group=group)
