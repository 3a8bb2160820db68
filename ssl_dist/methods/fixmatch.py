"""FixMatch: what the network makes of a weak view of an image without a label is the label of a strong view of it.

Source: Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence", arXiv 2001.07685,
equations 3 and 4. Not here: its RandAugment and CTAugment, and its averaged weights.
"""

from __future__ import annotations

from typing import Literal

import pydantic
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ssl_dist.backbones import Backbone
from ssl_dist.collectives import sum_over_ranks
from ssl_dist.methods.base import Method, MethodConfig, Views


class FixMatch(Method):
    """Backbone and one linear layer. The labelled images are the first of each micro-batch (``batch.labelled``)."""

    class Config(MethodConfig):
        """Defaults are the paper's, but for the threshold, which is 0.95 there."""

        name: Literal["fixmatch"] = "fixmatch"
        num_classes: int = pydantic.Field(ge=2)
        threshold: float | None = pydantic.Field(None, gt=0, lt=1)  # of a prediction that is a label; None: all are
        unlabelled_weight: float = pydantic.Field(1.0, ge=0)

    config: Config
    uses_labels = "some"

    def __init__(self, backbone: Backbone, config: FixMatch.Config) -> None:
        super().__init__(backbone, config)
        self.classifier = nn.Linear(backbone.dim, config.num_classes)

    @property
    def num_targets(self) -> int:
        return 1

    def embed(self, views: Views) -> Tensor:
        """``[N, 2, 1]``: an image's cross-entropy, and 1 where it is labelled or else 0.

        One forward pass of the weak view of all images and the strong view of the unlabelled ones: BatchNorm sees all.
        """
        weak, strong = views.alike  # [N, 3, S, S] each
        labelled = views.labels >= 0
        count = int(labelled.sum())
        seen = self.classifier(self.backbone(torch.cat([weak, strong[count:]])))  # [N + unlabelled, K]
        logits = seen.to(torch.promote_types(seen.dtype, torch.float32))
        predicted = logits[count : len(weak)].detach().softmax(1)
        confidence, guessed = predicted.max(1)
        learning = torch.cat([logits[:count], logits[len(weak) :]])  # [N, K]
        losses = cross_entropy(learning, torch.cat([views.labels[:count], guessed]), reduction="none")
        if self.config.threshold is not None:
            losses = torch.cat([losses[:count], losses[count:] * (confidence >= self.config.threshold)])
        return torch.stack([losses, labelled.to(losses)], dim=1)[:, :, None]

    def loss(self, embeddings: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
        """Mean over the labelled images of the global batch + weight * mean over the others of it."""
        losses, labelled = embeddings[:, :, 0].unbind(1)  # [N] each
        unlabelled = 1 - labelled
        sums = torch.stack([labelled @ losses, labelled.sum(), unlabelled @ losses, unlabelled.sum()])
        of_labelled, num_labelled, of_others, num_others = sum_over_ranks(sums, group)
        total: Tensor = of_labelled / num_labelled + self.config.unlabelled_weight * of_others / num_others
        return total

    def pairs(self, embeddings: Tensor) -> None:
        return None
