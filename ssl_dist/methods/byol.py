"""BYOL: each view predicts a slow copy's projection of the other view; no image repels another.

Source: Grill et al., "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning", arXiv 2006.07733.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ssl_dist.backbones import Backbone
from ssl_dist.collectives import Group, RowCounts, sum_over_ranks
from ssl_dist.ema import SlowCopy
from ssl_dist.methods.base import TrainingProgress, Views, embed_views_apart, projection_head
from ssl_dist.methods.projection import ProjectionMethod
from ssl_dist.methods.settings import BYOLConfig


class BYOL(ProjectionMethod):
    """Online network (backbone, projection head, predictor) and a slow copy of its backbone and projection head.

    Only the predictor and the copy's slowness keep the network from giving all images one embedding.
    """

    Config = BYOLConfig
    config: BYOLConfig
    loss_falls = False
    num_targets = 2
    follows_length = True

    def __init__(self, backbone: Backbone, config: BYOLConfig) -> None:
        super().__init__(backbone, config)
        hidden = config.projection_hidden or backbone.dim
        self.predictor = projection_head(config.projection_dim, hidden, config.projection_dim, 2)
        self.slow = SlowCopy(self.encoder)

    def embed(self, views: Views) -> Tensor:
        """Return predictions from views 1 and 2, then their targets: slow projections of views 2 and 1, ``[N, 4, D]``.

        Each view has its own BatchNorm statistics, as in the authors' code, because their augmentations differ.
        """
        predictions = embed_views_apart(nn.Sequential(self.encoder, self.predictor), views.stacked)
        targets = embed_views_apart(self.slow, views.stacked.flip(0))
        return torch.cat([predictions, targets], dim=1)

    def loss(self, outputs: Tensor, group: Group = None) -> Tensor:
        """Compute equation 2 for each prediction p and target t, summed over both views as in the text below it.

            | p / |p| - t / |t| |^2 = 2 - 2 cos(p, t)

        The loss is 0 where every prediction is right, 4 where predictions are unrelated to targets, 8 at most.
        """
        prediction, target = normalize(outputs, dim=2).chunk(2, dim=1)  # [N, 2, D]
        total = (prediction - target).square().sum()
        return sum_over_ranks(total, group) / RowCounts.of(outputs, group).total

    def after_step(self, outputs: Tensor, progress: TrainingProgress, group: Group = None) -> None:
        """Move the slow copy towards the new weights."""
        self.slow.follow(self.encoder, self.momentum_at(progress))

    def momentum_at(self, progress: TrainingProgress) -> float:
        """Return ``1 - (1 - momentum) (cos(pi k / K) + 1) / 2`` for step k of K (section 3, "Optimization")."""
        fraction = progress.step / progress.total_steps
        return 1 - (1 - self.config.momentum) * (math.cos(math.pi * fraction) + 1) / 2
