"""Barlow Twins: over the batch, each feature of a view correlates with itself in the other view, and with no other.

Source: Zbontar et al., "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", arXiv 2103.03230.
"""

from __future__ import annotations

from typing import Literal

import pydantic
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssl_dist.backbones import Backbone
from ssl_dist.collectives import RowCounts, centred, sum_over_ranks
from ssl_dist.methods.base import Method, MethodConfig, Views, embed_views, projection_head

EPSILON = 1e-5  # added to a feature's variance, as the authors' BatchNorm does: a constant feature correlates with none


class BarlowTwins(Method):
    """Backbone and projection head; features are standardised over the global batch and compared as a D x D matrix."""

    class Config(MethodConfig):
        """Defaults are the authors' code's for ImageNet (the paper, section 2.2, rounds the weight to 5e-3)."""

        name: Literal["barlow_twins"] = "barlow_twins"
        redundancy_weight: float = pydantic.Field(0.0051, ge=0)  # lambda
        projection_layers: int = pydantic.Field(3, ge=1, le=3)
        projection_hidden: int = pydantic.Field(8192, ge=1)
        projection_dim: int = pydantic.Field(8192, ge=1)

    config: Config
    least_micro = 2  # each view by itself

    def __init__(self, backbone: Backbone, config: BarlowTwins.Config) -> None:
        super().__init__(backbone, config)
        self.projection_head = projection_head(
            backbone.dim, config.projection_hidden, config.projection_dim, config.projection_layers
        )

    def embed(self, views: Views) -> Tensor:
        """``[N, 2, D]``; each view has BatchNorm statistics of its own, as in the authors' code."""
        network = nn.Sequential(self.backbone, self.projection_head)
        return torch.cat([embed_views(network, view) for view in views.alike.split(1)], dim=1)

    def loss(self, embeddings: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
        """Equations 1 and 2, with a and b the two views, centred over the global batch of B images.

            C_ij = sum_n a_ni b_nj / (B std(a_i) std(b_j))        [D, D]
            loss = sum_i (1 - C_ii)^2 + redundancy_weight sum_{i != j} C_ij^2

        All ranks go on alike from sums of products, so ``sum_over_ranks`` gives them the whole gradient. (The authors'
        main.py adds C up by an in-place ``all_reduce`` and averages gradients: 1 / ranks of it.)
        """
        total = RowCounts.of(embeddings, group).total
        z = centred(embeddings, total, group)  # [N, 2, D]
        a, b = z.unbind(1)
        with torch.autocast(z.device.type, enabled=False):
            products = sum_over_ranks(a.T @ b, group) / total  # [D, D]
        std_a, std_b = (sum_over_ranks(z.square().sum(0), group) / total + EPSILON).sqrt()  # [D] each
        error = (
            products / torch.outer(std_a, std_b) - torch.eye(len(products), dtype=z.dtype, device=z.device)
        ).square()
        itself = error.trace()
        return itself + self.config.redundancy_weight * (error.sum() - itself)
