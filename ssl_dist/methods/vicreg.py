"""VICReg: two views agree, each feature varies over the batch, and no two features vary together.

Source: Bardes et al., "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning", arXiv
2105.04906.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_dist.collectives import Group, RowCounts, subtract_global_mean, sum_over_ranks
from ssl_dist.methods.base import Views, embed_views_apart
from ssl_dist.methods.projection import ProjectionMethod
from ssl_dist.methods.settings import VICRegConfig

EPSILON = 1e-4  # added to a variance: the root's slope stays finite where all embeddings are equal


class VICReg(ProjectionMethod):
    """Backbone and projection head (the paper's expander)."""

    Config = VICRegConfig
    config: VICRegConfig

    def embed(self, views: Views) -> Tensor:
        """Return embeddings ``[N, 2, D]``; each view has its own BatchNorm statistics, as in the authors' code."""
        return embed_views_apart(self.encoder, views.stacked)

    def loss(self, outputs: Tensor, group: Group = None) -> Tensor:
        """Compute algorithm 1, where C is the covariance [D, D] of a view over the global batch of B images.

            invariance = mean (a - b)^2                                   over images and features
            variance   = sum over views, mean_i max(0, 1 - sqrt(C_ii + epsilon))
            covariance = sum over views, 1/D sum_{i != j} C_ij^2          C divided by B - 1

        NOTE: equation 5 has no 1/D in the invariance; the algorithm and the authors' code have it. Their code halves
        the variance, the paper does not (https://github.com/facebookresearch/vicreg/issues/8), nor does this.
        """
        total, dim = RowCounts.of(outputs, group).total, outputs.shape[2]
        a, b = outputs.unbind(1)  # [N, D]
        invariance = sum_over_ranks((a - b).square().sum(), group) / (total * dim)
        z = subtract_global_mean(outputs, total, group).transpose(0, 1)  # [2, N, D]
        with torch.autocast(z.device.type, enabled=False):
            c = sum_over_ranks(z.mT @ z, group) / (total - 1)  # [2, D, D]
        diagonal = c.diagonal(dim1=1, dim2=2)  # [2, D]
        variance = (1 - (diagonal + EPSILON).sqrt()).relu().sum() / dim
        covariance = (c - diagonal.diag_embed()).square().sum() / dim
        weights = self.config
        disagreement = weights.invariance_weight * invariance
        return disagreement + weights.variance_weight * variance + weights.covariance_weight * covariance
