"""Barlow Twins: each feature of one view correlates with itself in the other view, and with no other feature.

Source: Zbontar et al., "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", arXiv 2103.03230.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_dist.collectives import Group, RowCounts, subtract_global_mean, sum_over_ranks
from ssl_dist.methods.base import Views, embed_views_apart
from ssl_dist.methods.projection import ProjectionMethod
from ssl_dist.methods.settings import BarlowTwinsConfig

EPSILON = 1e-5  # added to a variance, as the authors' BatchNorm does: a constant feature then correlates with none


class BarlowTwins(ProjectionMethod):
    """Backbone and projection head; features are standardised over the global batch, then correlated."""

    Config = BarlowTwinsConfig
    config: BarlowTwinsConfig

    def embed(self, views: Views) -> Tensor:
        """Return embeddings ``[N, 2, D]``; each view has its own BatchNorm statistics, as in the authors' code."""
        return embed_views_apart(self.encoder, views.stacked)

    def loss(self, outputs: Tensor, group: Group = None) -> Tensor:
        """Compute equations 1 and 2; a and b are the two views, centred over the global batch of B images.

            C_ij = sum_n a_ni b_nj / (B std(a_i) std(b_j))        [D, D]
            loss = sum_i (1 - C_ii)^2 + redundancy_weight sum_{i != j} C_ij^2

        NOTE: all ranks compute the same loss from sums of products, so ``sum_over_ranks`` gives them the whole
        gradient. The authors' main.py sums C by an in-place ``all_reduce`` and averages gradients, which leaves
        1 / ranks of it.
        """
        total = RowCounts.of(outputs, group).total
        z = subtract_global_mean(outputs, total, group)  # [N, 2, D]
        a, b = z.unbind(1)
        with torch.autocast(z.device.type, enabled=False):
            products = sum_over_ranks(a.T @ b, group) / total  # [D, D]
        std_a, std_b = (sum_over_ranks(z.square().sum(0), group) / total + EPSILON).sqrt()  # [D] each
        correlation = products / torch.outer(std_a, std_b)
        error = (correlation - torch.eye(len(products), dtype=z.dtype, device=z.device)).square()
        on_diagonal = error.trace()
        return on_diagonal + self.config.redundancy_weight * (error.sum() - on_diagonal)
