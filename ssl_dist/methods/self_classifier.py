"""Self-Classifier: a classifier puts two views of an image into the same class; all classes are equally likely.

Source: Amrani, Karlinsky, Bronstein, "Self-Supervised Classification Network", arXiv 2103.10994 (version 3, ECCV 2022);
its code, elad-amrani/self-classifier, src/loss.py and src/model.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ssl_dist.backbones import Backbone
from ssl_dist.collectives import Group, RowCounts, log_sum_exp_over_ranks, sum_over_ranks
from ssl_dist.methods.base import Views, embed_crops
from ssl_dist.methods.projection import ProjectionMethod
from ssl_dist.methods.settings import SelfClassifierConfig

_LARGE = 2  # the first two views are large; of the others (multi-crop) no two are compared with each other


class SelfClassifier(ProjectionMethod):
    """Projection head and classifiers of C classes each; there is no stopped gradient, slow copy or queue.

    A loss that stays at ln C (6.685 for 800) means collapse: all images have the same probabilities, whatever these
    are. Where all images are classified with certainty, and all classes are used equally, the loss is 0, or ln(C / B)
    for a batch of B < C images.

    Left out of the authors' code: the nearest neighbour of an earlier batch in place of a view, the learnt length of
    classifiers (its initial 1 is kept), LeakyReLU (ReLU here) and the 1e-8 under the logarithm, which logarithms of
    softmaxes do not need. The head always has BatchNorm, as the authors' scripts for ImageNet have it. So its hidden
    layers need no bias, and the scale of its initial weights (torch's; the authors have a deviation of 0.02) does not
    change its outputs. docs/differences.md says more.
    """

    Config = SelfClassifierConfig
    config: SelfClassifierConfig
    loss_falls = False

    def __init__(self, backbone: Backbone, config: SelfClassifierConfig) -> None:
        super().__init__(backbone, config)
        self.collapsed_loss = sum(math.log(count) for count in config.classes) / len(config.classes)
        self.classifiers = nn.Parameter(normalize(torch.randn(sum(config.classes), config.projection_dim), dim=1))

    def embed(self, views: Views) -> Tensor:
        """Return scores ``[N, V, sum of C]``: cosines with the classes of each classifier in turn."""
        z = normalize(embed_crops(self.backbone, self.projection_head, views.crops), dim=2)  # [N, V, D]
        with torch.autocast(z.device.type, enabled=False):  # bfloat16 would be off by 0.1 in the logits
            return z @ normalize(self.classifiers, dim=1).T

    def loss(self, outputs: Tensor, group: Group = None) -> Tensor:
        """Return the mean over classifiers of the cross-entropy between views.

            -sum_c target_a[c] log prediction_b[c]

        It is averaged over the B images of the global batch and over ordered pairs (a, b) of views, of which one at
        least is large. Here p(a | c) is a softmax over the images, p(c | b) a softmax over the classes:

            target      p(a | c) / sum_c' p(a | c')
            prediction  B / C p(c | b) / sum over images p(c | .)
        """
        total = RowCounts.of(outputs, group).total
        with torch.autocast(outputs.device.type, enabled=False):
            per_classifier = outputs.split(self.config.classes, dim=2)
            losses = [self._classifier_loss(cosines, total, group) for cosines in per_classifier]
        return torch.stack(losses).mean()

    def _classifier_loss(self, cosines: Tensor, total: int, group: Group) -> Tensor:
        """Return one classifier's loss, from ``[N, V, C]``."""
        num_views, num_classes = cosines.shape[1:]
        columns = cosines / self.config.column_temperature
        target = (columns - log_sum_exp_over_ranks(columns, group)).softmax(2)  # [N, V, C]
        rows = (cosines / self.config.row_temperature).log_softmax(2)
        log_prediction = rows - log_sum_exp_over_ranks(rows, group) + math.log(total / num_classes)
        agreement = torch.einsum("nac,nbc->ab", target, log_prediction)  # [V, V]
        view = torch.arange(num_views, device=cosines.device)
        compared = (view[:, None] != view) & (torch.minimum(view[:, None], view) < _LARGE)
        return -sum_over_ranks(agreement[compared].sum(), group) / (total * compared.sum())
