"""VICReg: two views agree, each feature varies over the batch, and no two features vary together.

Source: Bardes et al., "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning", arXiv
2105.04906.
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

EPSILON = 1e-4  # added to a variance: the root's slope stays finite where all embeddings are one


class VICReg(Method):
    """Backbone and projection head (the paper's expander)."""

    class Config(MethodConfig):
        """Defaults are the paper's for ImageNet (section 4.2)."""

        name: Literal["vicreg"] = "vicreg"
        invariance_weight: float = pydantic.Field(25.0, ge=0)  # lambda
        variance_weight: float = pydantic.Field(25.0, ge=0)  # mu
        covariance_weight: float = pydantic.Field(1.0, ge=0)  # nu
        projection_layers: int = pydantic.Field(3, ge=1, le=3)
        projection_hidden: int = pydantic.Field(8192, ge=1)
        projection_dim: int = pydantic.Field(8192, ge=1)

    config: Config
    least_micro = 2  # each view by itself

    def __init__(self, backbone: Backbone, config: VICReg.Config) -> None:
        super().__init__(backbone, config)
        self.projection_head = projection_head(
            backbone.dim, config.projection_hidden, config.projection_dim, config.projection_layers
        )

    def embed(self, views: Views) -> Tensor:
        """``[N, 2, D]``; each view has BatchNorm statistics of its own, as in the authors' code."""
        network = nn.Sequential(self.backbone, self.projection_head)
        return torch.cat([embed_views(network, view) for view in views.alike.split(1)], dim=1)

    def loss(self, embeddings: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
        """Algorithm 1: with C the covariance [D, D] of a view's embeddings over the global batch of B images,

            invariance = mean (a - b)^2                                   over images and features
            variance   = sum over views, mean_i max(0, 1 - sqrt(C_ii + epsilon))
            covariance = sum over views, 1/D sum_{i != j} C_ij^2          C divided by B - 1

        NOTE: equation 5 has no 1/D in the invariance; the algorithm and the authors' code have it. Their code halves
        the variance, the paper does not (https://github.com/facebookresearch/vicreg/issues/8): as here.
        """
        total, dim = RowCounts.of(embeddings, group).total, embeddings.shape[2]
        a, b = embeddings.unbind(1)  # [N, D]
        invariance = sum_over_ranks((a - b).square().sum(), group) / (total * dim)
        z = centred(embeddings, total, group).transpose(0, 1)  # [2, N, D]
        with torch.autocast(z.device.type, enabled=False):
            c = sum_over_ranks(z.mT @ z, group) / (total - 1)  # [2, D, D]
        diagonal = c.diagonal(dim1=1, dim2=2)  # [2, D]
        variance = (1 - (diagonal + EPSILON).sqrt()).relu().sum() / dim
        covariance = (c - diagonal.diag_embed()).square().sum() / dim
        weights = self.config
        return (
            weights.invariance_weight * invariance
            + weights.variance_weight * variance
            + weights.covariance_weight * covariance
        )
