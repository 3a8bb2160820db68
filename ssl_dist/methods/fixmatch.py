"""FixMatch: the class predicted for a weak view of an unlabelled image is the label of a strong view of that image.

Source: Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence", arXiv 2001.07685,
equations 3 and 4. RandAugment, CTAugment and averaged weights, which the paper has, are left out.
"""

from __future__ import annotations

from typing import Literal

import pydantic
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ssl_dist.backbones import Backbone
from ssl_dist.collectives import Group, sum_over_ranks
from ssl_dist.methods.base import Method, MethodConfig, Views, known_classes


class FixMatch(Method):
    """Backbone and linear classifier. Labelled images come first in each micro-batch (``batch.labelled``)."""

    class Config(MethodConfig):
        """Settings of FixMatch. Defaults are the paper's, except the threshold (the paper has 0.95)."""

        name: Literal["fixmatch"] = "fixmatch"
        num_classes: int | None = pydantic.Field(None, ge=2)
        """Number of classes, 2 or more; `None`: as many as the store and its labels have."""
        threshold: float | None = pydantic.Field(None, gt=0, lt=1)
        """Least probability, between 0 and 1, at which a predicted class becomes a label; `None`: every one does."""
        unlabelled_weight: float = pydantic.Field(1.0, ge=0)
        """Weight of the unlabelled images' loss, 0 or more."""

    config: Config
    uses_labels = "some"
    num_targets = 1

    def __init__(self, backbone: Backbone, config: FixMatch.Config) -> None:
        super().__init__(backbone, config)
        self.classifier = nn.Linear(backbone.dim, known_classes(config.num_classes))

    def embed(self, views: Views) -> Tensor:
        """Return ``[N, 2, 1]``: each image's cross-entropy, and 1 if it is labelled or else 0.

        One forward pass takes the weak views of all images and the strong views of the unlabelled ones, so BatchNorm
        sees both.
        """
        weak, strong = views.stacked  # [N, 3, S, S] each
        is_labelled = views.labels >= 0
        num_labelled = int(is_labelled.sum())
        scores = self.classifier(self.backbone(torch.cat([weak, strong[num_labelled:]])))  # [N + unlabelled, K]
        logits = scores.to(torch.promote_types(scores.dtype, torch.float32))
        confidence, predicted = logits[num_labelled : len(weak)].detach().softmax(1).max(1)
        learning = torch.cat([logits[:num_labelled], logits[len(weak) :]])  # [N, K]
        losses = cross_entropy(learning, torch.cat([views.labels[:num_labelled], predicted]), reduction="none")
        if self.config.threshold is not None:
            confident = confidence >= self.config.threshold
            losses = torch.cat([losses[:num_labelled], losses[num_labelled:] * confident])
        return torch.stack([losses, is_labelled.to(losses)], dim=1)[:, :, None]

    def loss(self, outputs: Tensor, group: Group = None) -> Tensor:
        """Return the labelled images' mean + ``unlabelled_weight`` * the others' mean, over the global batch."""
        losses, labelled = outputs[:, :, 0].unbind(1)  # [N] each
        unlabelled = 1 - labelled
        sums = torch.stack([labelled @ losses, labelled.sum(), unlabelled @ losses, unlabelled.sum()])
        labelled_sum, num_labelled, unlabelled_sum, num_unlabelled = sum_over_ranks(sums, group)
        unlabelled_loss = self.config.unlabelled_weight * unlabelled_sum / num_unlabelled
        total: Tensor = labelled_sum / num_labelled + unlabelled_loss
        return total

    def pairs(self, outputs: Tensor) -> None:
        return None
