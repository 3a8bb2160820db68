"""VICReg: two views agree, each feature varies over the batch, and no two features vary together.

Source: Bardes et al., "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning", arXiv
2105.04906.
"""

from __future__ import annotations

from typing import Literal

import pydantic
import torch
from torch import Tensor

from ssl_dist.collectives import Group, RowCounts, subtract_global_mean, sum_over_ranks
from ssl_dist.methods.base import Views, embed_views_apart
from ssl_dist.methods.projection import HeadDim, HeadHidden, HeadLayers, ProjectionConfig, ProjectionMethod

EPSILON = 1e-4  # added to a variance: the root's slope stays finite where all embeddings are equal


class VICReg(ProjectionMethod):
    """Backbone and projection head (the paper's expander)."""

    class Config(ProjectionConfig):
        """Settings of VICReg. Defaults are the paper's for ImageNet (section 4.2)."""

        name: Literal["vicreg"] = "vicreg"
        invariance_weight: float = pydantic.Field(25.0, ge=0)
        """Weight of the distance between two views of an image (lambda), 0 or more."""
        variance_weight: float = pydantic.Field(25.0, ge=0)
        """Weight of features that vary too little over the batch (mu), 0 or more."""
        covariance_weight: float = pydantic.Field(1.0, ge=0)
        """Weight of features that vary together (nu), 0 or more."""
        projection_layers: HeadLayers = 3
        projection_hidden: HeadHidden = 8192
        projection_dim: HeadDim = 8192

    config: Config
    least_micro = 2  # BatchNorm sees each view by itself

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
