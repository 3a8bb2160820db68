"""Supervised learning: backbone, one linear layer, cross-entropy; a reference for pretraining without labels.

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
from ssl_dist.methods.base import Method, MethodConfig, Views, embed_views, mean_over_batch


class Supervised(Method):
    """Backbone and linear classifier, which classifies every view of an image."""

    class Config(MethodConfig):
        """Settings of supervised learning."""

        name: Literal["supervised"] = "supervised"
        num_classes: int = pydantic.Field(ge=2)
        """Number of classes, 2 or more."""
        label_smoothing: float = pydantic.Field(0.0, ge=0, lt=1)
        """Share of a label's probability that is spread evenly over all classes, 0 <= share < 1."""

    config: Config
    uses_labels = "all"
    num_views = (1, None)

    def __init__(self, backbone: Backbone, config: Supervised.Config) -> None:
        super().__init__(backbone, config)
        self.classifier = nn.Linear(backbone.dim, config.num_classes)

    def embed(self, views: Views) -> Tensor:
        """Return each view's cross-entropy, ``[N, V, 1]``."""
        logits = embed_views(nn.Sequential(self.backbone, self.classifier), views.stacked)  # [N, V, K]
        labels = views.labels[:, None].expand(logits.shape[:2])
        losses = cross_entropy(
            logits.transpose(1, 2),
            labels,
            ignore_index=-1,  # all labels of a worker without a micro-batch
            label_smoothing=self.config.label_smoothing,
            reduction="none",
        )
        return losses[:, :, None]

    def loss(self, outputs: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
        """Return the mean cross-entropy over the views of the global batch."""
        return mean_over_batch(outputs, group)

    def pairs(self, outputs: Tensor) -> None:
        return None
