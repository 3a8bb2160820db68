"""FixMatch: the class predicted for a weak view of an unlabelled image is the label of a strong view of that image.

Source: Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence", arXiv 2001.07685,
equations 3 and 4. RandAugment, CTAugment and averaged weights, which the paper has, are left out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ssl_dist.backbones import Backbone
from ssl_dist.collectives import Group, sum_over_ranks
from ssl_dist.methods.base import Method, Views, known_classes
from ssl_dist.methods.settings import FixMatchConfig


class FixMatch(Method):
    """Backbone and linear classifier. Labelled images come first in each micro-batch (``batch.labelled``)."""

    Config = FixMatchConfig
    config: FixMatchConfig
    loss_falls = False
    num_targets = 1

    def __init__(self, backbone: Backbone, config: FixMatchConfig) -> None:
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
