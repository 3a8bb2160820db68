"""MoCo v2: a view attracts the other view's embedding by a slow encoder, and repels a queue of earlier ones.

Sources: He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", arXiv 1911.05722 (algorithm 1);
Chen et al., "Improved Baselines with Momentum Contrastive Learning", arXiv 2003.04297 (MLP head, augmentation).
"""

from __future__ import annotations

from typing import Literal

import pydantic
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from ssl_dist.backbones import Backbone
from ssl_dist.collectives import RowCounts, sum_over_ranks
from ssl_dist.ema import SlowCopy
from ssl_dist.methods.base import Method, MethodConfig, Progress, Views, embed_views, projection_head
from ssl_dist.settings import BatchConfig


class MoCo(Method):
    """Query encoder, slow key encoder, queue of keys.

    The paper shuffles images between GPUs, lest a query and its key share BatchNorm statistics by which they could be
    told from the queue's. Here micro-batches stand in for GPUs: queries are embedded in ``batch_norm_groups`` runs of
    neighbours of their micro-batch, keys in as many groups of images that are as far apart, each group with statistics
    of its own, so that a query's group and its key's have one image in ``batch_norm_groups`` in common (where a
    micro-batch has the square of that, or more). As in the authors' code the head has no BatchNorm.
    """

    class Config(MethodConfig):
        """Defaults are MoCo v2's for ImageNet."""

        name: Literal["moco"] = "moco"
        temperature: float = pydantic.Field(0.2, gt=0)
        queue: int = pydantic.Field(65536, ge=1)
        momentum: float = pydantic.Field(0.999, ge=0, le=1)  # of the slow encoder
        symmetric: bool = False  # each view is a query once
        batch_norm_groups: int = pydantic.Field(4, ge=1)  # of a micro-batch; 1: no shuffling
        projection_layers: int = pydantic.Field(2, ge=1, le=3)
        projection_hidden: int | None = pydantic.Field(None, ge=1)  # None: the backbone's dim
        projection_dim: int = pydantic.Field(128, ge=1)

        def check(self, epochs: float, batch: BatchConfig) -> None:
            groups = self.batch_norm_groups
            if batch.micro < 2 * groups:
                raise ValueError(
                    f"batch.micro {batch.micro}: method moco's {groups} batch_norm_groups need two images each, and"
                    f" {groups**2} for one in common: set batch.micro to {groups**2} or more, or fewer"
                    " method.batch_norm_groups"
                )

    config: Config
    queue: Tensor  # [K, D]
    position: Tensor  # where the next key goes

    def __init__(self, backbone: Backbone, config: MoCo.Config) -> None:
        super().__init__(backbone, config)
        hidden, layers = config.projection_hidden or backbone.dim, config.projection_layers
        self.projection_head = projection_head(backbone.dim, hidden, config.projection_dim, layers, batch_norm=False)
        self.slow = SlowCopy(self._query_encoder)
        self.register_buffer("queue", normalize(torch.randn(config.queue, config.projection_dim), dim=1))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    @property
    def num_targets(self) -> int:
        return 2 if self.config.symmetric else 1

    @property
    def _query_encoder(self) -> nn.Module:
        return nn.Sequential(self.backbone, self.projection_head)

    def embed(self, views: Views) -> Tensor:
        """Queries of one view, or of both, then keys of the other, or of both: ``[N, 2 or 4, D]``, normalised."""
        queries, keys = (views.alike, views.alike.flip(0)) if self.config.symmetric else views.alike.split(1)
        near, far = self._groups(queries.shape[1], queries.device)
        q = self._by_group(self._query_encoder, queries, near)
        k = self._by_group(self.slow, keys, far)
        return normalize(torch.cat([q, k], dim=1), dim=2)

    def _groups(self, n: int, device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
        """The images of each group: of neighbours, and of images far apart."""
        count = self.config.batch_norm_groups
        numbers = torch.arange(n, device=device)
        return list(numbers.tensor_split(count)), [numbers[start::count] for start in range(count)]

    @staticmethod
    def _by_group(encoder: nn.Module, views: Tensor, groups: list[Tensor]) -> Tensor:
        back = torch.cat(groups).argsort()
        return torch.cat([embed_views(encoder, views[:, group]) for group in groups])[back]

    def loss(self, embeddings: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
        """``mean_i -log[ exp(q_i.k_i / t) / (exp(q_i.k_i / t) + sum_j exp(q_i.queue_j / t)) ]``."""
        q, k = embeddings.chunk(2, dim=1)  # [N, 1 or 2, D]
        positive = (q * k).sum(2, keepdim=True)  # [N, 1 or 2, 1]
        negative = q @ self.queue.to(q).T  # [N, 1 or 2, K]
        logits = torch.cat([positive, negative], dim=2).flatten(0, 1) / self.config.temperature
        total = cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64), reduction="sum")
        return sum_over_ranks(total, group) / (RowCounts.of(q, group).total * q.shape[1])

    def after_step(self, embeddings: Tensor, progress: Progress, group: dist.ProcessGroup | None = None) -> None:
        """The slow encoder follows; the global batch's keys of one view go into the queue, in the global order."""
        self.slow.follow(self._query_encoder, self.config.momentum)
        keys = embeddings.chunk(2, dim=1)[1][:, 0]
        keys = RowCounts.of(keys, group).gather(keys)[-len(self.queue) :]
        places = (self.position + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[places] = keys.to(self.queue)
        self.position.copy_((self.position + len(keys)) % len(self.queue))
