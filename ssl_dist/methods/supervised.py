"""Supervised learning: backbone, one linear layer, cross-entropy; a reference for pretraining without labels.

Source of label smoothing: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", arXiv
1512.00567, section 7.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ssl_dist.backbones import Backbone
from ssl_dist.methods.base import LossMethod, Views, embed_views, known_classes
from ssl_dist.methods.settings import SupervisedConfig


class Supervised(LossMethod):
    """Backbone and linear classifier, which classifies every view of an image."""

    Config = SupervisedConfig
    config: SupervisedConfig

    def __init__(self, backbone: Backbone, config: SupervisedConfig) -> None:
        super().__init__(backbone, config)
        self.classifier = nn.Linear(backbone.dim, known_classes(config.num_classes))

    def embed(self, views: Views) -> Tensor:
        """Return each view's cross-entropy, ``[N, V, 1]``."""
        logits = embed_views(nn.Sequential(self.backbone, self.classifier), views.stacked)  # [N, V, K]
        labels = views.labels[:, None].expand(logits.shape[:2])
        smoothing = self.config.label_smoothing
        # a worker without a micro-batch has labels of -1 only
        losses = cross_entropy(logits.mT, labels, ignore_index=-1, label_smoothing=smoothing, reduction="none")
        return losses[:, :, None]
