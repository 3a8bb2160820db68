"""Supervised learning: backbone, one linear layer, cross-entropy; what pretraining without labels is measured against.

Source of label smoothing: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", arXiv
1512.00567, section 7.
"""

from __future__ import annotations

from typing import Literal

import pydantic
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ssl_dist.backbones import Backbone
from ssl_dist.collectives import RowCounts, sum_over_ranks
from ssl_dist.methods.base import Method, MethodConfig, Views, embed_views


class Supervised(Method):
    """Every view of a labelled image is classified."""

    class Config(MethodConfig):
        name: Literal["supervised"] = "supervised"
        num_classes: int = pydantic.Field(ge=2)
        label_smoothing: float = pydantic.Field(0.0, ge=0, lt=1)  # share of a label that all classes divide evenly

    config: Config
    uses_labels = "all"
    num_views = (1, None)

    def __init__(self, backbone: Backbone, config: Supervised.Config) -> None:
        super().__init__(backbone, config)
        self.classifier = nn.Linear(backbone.dim, config.num_classes)

    def embed(self, views: Views) -> Tensor:
        """The cross-entropy of each view, ``[N, V, 1]``."""
        logits = embed_views(nn.Sequential(self.backbone, self.classifier), views.alike)  # [N, V, K]
        labels = views.labels[:, None].expand(logits.shape[:2])
        losses = cross_entropy(
            logits.transpose(1, 2),
            labels,
            ignore_index=-1,  # where a worker has no micro-batch
            label_smoothing=self.config.label_smoothing,
            reduction="none",
        )
        return losses[:, :, None]

    def loss(self, embeddings: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
        """The mean over the views of the global batch."""
        return sum_over_ranks(embeddings.sum(), group) / (RowCounts.of(embeddings, group).total * embeddings.shape[1])

    def pairs(self, embeddings: Tensor) -> None:
        return None
