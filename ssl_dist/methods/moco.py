"""MoCo v2: a view attracts a slow encoder's embedding of the other view, and repels a queue of earlier embeddings.

Sources: He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", arXiv 1911.05722 (algorithm 1);
Chen et al., "Improved Baselines with Momentum Contrastive Learning", arXiv 2003.04297 (MLP head, augmentation).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from ssl_dist.backbones import Backbone
from ssl_dist.collectives import Group, RowCounts, sum_over_ranks
from ssl_dist.ema import SlowCopy
from ssl_dist.methods.base import TrainingProgress, Views, embed_views
from ssl_dist.methods.projection import ProjectionMethod
from ssl_dist.methods.settings import MoCoConfig


class MoCo(ProjectionMethod):
    """Query encoder, slow key encoder, queue of keys.

    BatchNorm must not reveal which key belongs to a query: a query and its key could be recognised by statistics that
    they share. The paper shuffles images between GPUs; here groups of a micro-batch stand in for GPUs. Queries form
    ``batch_norm_groups`` groups of neighbouring images, keys as many groups of images far apart, and each group has its
    own statistics. With ``batch_norm_groups``^2 images in a micro-batch, a query's group and its key's group share one
    image. As in the authors' code, the head has no BatchNorm. The symmetric loss is the mean over both directions, and
    the keys of one view join the queue; in the authors' demonstration for CIFAR-10 it is the sum, and the keys of both
    views join (docs/differences.md).
    """

    Config = MoCoConfig
    config: MoCoConfig
    loss_falls = False
    head_batch_norm = False
    queue: Tensor  # [K, D]
    position: Tensor  # index at which the next key is written

    def __init__(self, backbone: Backbone, config: MoCoConfig) -> None:
        super().__init__(backbone, config)
        self.num_targets = 2 if config.symmetric else 1
        self.slow = SlowCopy(self.encoder)
        self.register_buffer("queue", normalize(torch.randn(config.queue, config.projection_dim), dim=1))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    def embed(self, views: Views) -> Tensor:
        """Return queries of one view (or both), then keys of the other (or both): ``[N, 2 or 4, D]``, of length 1."""
        crops = views.stacked
        queries, keys = (crops, crops.flip(0)) if self.config.symmetric else crops.split(1)
        neighbours, far_apart = self._groups(queries.shape[1], queries.device)
        q = self._embed_groups(self.encoder, queries, neighbours)
        k = self._embed_groups(self.slow, keys, far_apart)
        return normalize(torch.cat([q, k], dim=1), dim=2)

    def _groups(self, n: int, device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
        """Return image numbers of the queries' groups (neighbours) and of the keys' groups (images far apart)."""
        count = self.config.batch_norm_groups
        numbers = torch.arange(n, device=device)
        return list(numbers.tensor_split(count)), [numbers[start::count] for start in range(count)]

    @staticmethod
    def _embed_groups(encoder: nn.Module, views: Tensor, groups: list[Tensor]) -> Tensor:
        """Embed each group in its own forward pass, ``[V, N, ...]`` -> ``[N, V, D]`` in the images' order."""
        to_image_order = torch.cat(groups).argsort()
        return torch.cat([embed_views(encoder, views[:, group]) for group in groups])[to_image_order]

    def loss(self, outputs: Tensor, group: Group = None) -> Tensor:
        """Compute ``mean_i -log[ exp(q_i.k_i / t) / (exp(q_i.k_i / t) + sum_j exp(q_i.queue_j / t)) ]``."""
        q, k = outputs.chunk(2, dim=1)  # [N, 1 or 2, D]
        positive = (q * k).sum(2, keepdim=True)  # [N, 1 or 2, 1]
        negative = q @ self.queue.to(q).T  # [N, 1 or 2, K]
        logits = torch.cat([positive, negative], dim=2).flatten(0, 1) / self.config.temperature
        total = cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64), reduction="sum")
        return sum_over_ranks(total, group) / (RowCounts.of(q, group).total * q.shape[1])

    def after_step(self, outputs: Tensor, progress: TrainingProgress, group: Group = None) -> None:
        """Move the slow encoder, and put the global batch's keys of one view into the queue, in the global order."""
        self.slow.follow(self.encoder, self.config.momentum)
        keys = outputs.chunk(2, dim=1)[1][:, 0]
        keys = RowCounts.of(keys, group).gather(keys)[-len(self.queue) :]
        rows = (self.position + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[rows] = keys.to(self.queue)
        self.position.copy_((self.position + len(keys)) % len(self.queue))
