"""BYOL: each view predicts the other view's projection by a slow copy of the network; no image repels another.

Source: Grill et al., "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning", arXiv 2006.07733.
"""

from __future__ import annotations

import math
from typing import Literal

import pydantic
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import normalize

from ssl_dist.backbones import Backbone
from ssl_dist.collectives import RowCounts, sum_over_ranks
from ssl_dist.ema import SlowCopy
from ssl_dist.methods.base import Method, MethodConfig, Progress, Views, embed_views, projection_head


class BYOL(Method):
    """Online network (backbone, projection head, predictor) and the slow copy of its backbone and projection head.

    The predictor and the copy's slowness are all that keeps a constant embedding from being found.
    """

    class Config(MethodConfig):
        """Defaults are the paper's for ImageNet (section 3, "Implementation details")."""

        name: Literal["byol"] = "byol"
        momentum: float = pydantic.Field(0.996, ge=0, le=1)  # of the slow copy, in the first step; rises to 1
        projection_layers: int = pydantic.Field(2, ge=1, le=3)
        projection_hidden: int = pydantic.Field(4096, ge=1)  # of the predictor too
        projection_dim: int = pydantic.Field(256, ge=1)

    config: Config
    least_micro = 2  # each view by itself

    def __init__(self, backbone: Backbone, config: BYOL.Config) -> None:
        super().__init__(backbone, config)
        hidden, dim = config.projection_hidden, config.projection_dim
        self.projection_head = projection_head(backbone.dim, hidden, dim, config.projection_layers)
        self.predictor = projection_head(dim, hidden, dim, 2)
        self.slow = SlowCopy(self._projected)

    @property
    def num_targets(self) -> int:
        return 2

    @property
    def _projected(self) -> nn.Module:
        return nn.Sequential(self.backbone, self.projection_head)

    def embed(self, views: Views) -> Tensor:
        """Predictions from views 1 and 2, then their targets, the slow projections of views 2 and 1: ``[N, 4, D]``.

        Each view has BatchNorm statistics of its own, as in the authors' code: their augmentations differ.
        """
        one, other = views.alike.split(1)
        online = nn.Sequential(self._projected, self.predictor)
        passes = ((online, one), (online, other), (self.slow, other), (self.slow, one))
        return torch.cat([embed_views(network, view) for network, view in passes], dim=1)

    def loss(self, embeddings: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
        """Of each prediction p and target t, equation 2, summed over both views as the paper does below it.

            | p / |p| - t / |t| |^2 = 2 - 2 cos(p, t)

        So it is 0 where every prediction is right, 4 where they have nothing to do with their targets, 8 at most.
        """
        prediction, target = normalize(embeddings, dim=2).chunk(2, dim=1)  # [N, 2, D]
        total = (prediction - target).square().sum()
        return sum_over_ranks(total, group) / RowCounts.of(embeddings, group).total

    def after_step(self, embeddings: Tensor, progress: Progress, group: dist.ProcessGroup | None = None) -> None:
        """The slow copy follows the new weights."""
        self.slow.follow(self._projected, self.momentum_at(progress))

    def momentum_at(self, progress: Progress) -> float:
        """``1 - (1 - momentum) (cos(pi k / K) + 1) / 2`` in step k of K (section 3, "Optimization")."""
        part = progress.step / progress.total_steps
        return 1 - (1 - self.config.momentum) * (math.cos(math.pi * part) + 1) / 2
