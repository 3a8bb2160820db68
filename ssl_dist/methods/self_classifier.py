"""Self-Classifier: two views of an image are put into the same class, where all classes are as likely a priori.

Source: Amrani, Karlinsky, Bronstein, "Self-Supervised Classification Network", arXiv 2103.10994 (version 3, ECCV 2022);
its code, elad-amrani/self-classifier, src/loss.py and src/model.py.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import pydantic
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import normalize

from ssl_dist.backbones import Backbone
from ssl_dist.collectives import RowCounts, log_sum_exp, sum_over_ranks
from ssl_dist.methods.base import Method, MethodConfig, Views, embed_crops, projection_head

_LARGE = 2  # the first two views; of others (multi-crop) no two are compared with each other


class SelfClassifier(Method):
    """Projection head and classifiers of C classes each; no stopped gradient, no slow copy, no queue.

    A loss that stays at ln C (6.685 for 800) is collapse: whatever class it is, or none, all images have the same
    probabilities. Where all classes are used alike and surely it is 0, or ln(C / B) with a batch of B < C images.

    Left out of the authors' code: the nearest neighbour of an earlier batch in place of a view, the learnt length of
    classifiers (its initial 1 is kept), LeakyReLU (ReLU here) and the 1e-8 under the logarithm, which logarithms of
    softmaxes do not need.
    """

    class Config(MethodConfig):
        """Defaults are the paper's for ImageNet, but for ``classes``: it has (1000, 2000, 4000, 8000)."""

        name: Literal["self_classifier"] = "self_classifier"
        classes: tuple[Annotated[int, pydantic.Field(ge=2)], ...] = pydantic.Field((800,), min_length=1)  # each head's
        row_temperature: float = pydantic.Field(0.1, gt=0)  # of p(class | image)
        column_temperature: float = pydantic.Field(0.05, gt=0)  # of p(image | class)
        projection_layers: int = pydantic.Field(2, ge=1, le=3)
        projection_hidden: int | None = pydantic.Field(4096, ge=1)  # None: the backbone's dim
        projection_dim: int = pydantic.Field(128, ge=1)

    config: Config
    num_views = (2, None)
    multi_crop = True

    def __init__(self, backbone: Backbone, config: SelfClassifier.Config) -> None:
        super().__init__(backbone, config)
        self.projection_head = projection_head(
            backbone.dim, config.projection_hidden or backbone.dim, config.projection_dim, config.projection_layers
        )
        self.classifiers = nn.Parameter(normalize(torch.randn(sum(config.classes), config.projection_dim), dim=1))

    @property
    def collapsed_loss(self) -> float:
        return sum(math.log(count) for count in self.config.classes) / len(self.config.classes)

    def embed(self, views: Views) -> Tensor:
        """``[N, V, sum of C]``: cosines with every classifier's classes, one classifier after the other."""
        z = normalize(embed_crops(self.backbone, self.projection_head, views.crops), dim=2)  # [N, V, D]
        with torch.autocast(z.device.type, enabled=False):  # bfloat16 would be off by 0.1 in the logits
            return z @ normalize(self.classifiers, dim=1).T

    def loss(self, embeddings: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
        """Mean over classifiers, images and ordered pairs (a, b) of views, one of them large, of
        ``-sum_c target_a[c] log prediction_b[c]``, with B images in the global batch:

            target      p(a | c) / sum_c' p(a | c')                   p(a | c): softmax over the images, of class c
            prediction  B / C p(c | b) / sum over images p(c | .)     p(c | b): softmax over the classes
        """
        total = RowCounts.of(embeddings, group).total
        with torch.autocast(embeddings.device.type, enabled=False):
            heads = [self._one(cosines, total, group) for cosines in embeddings.split(self.config.classes, dim=2)]
        return torch.stack(heads).mean()

    def _one(self, cosines: Tensor, total: int, group: dist.ProcessGroup | None) -> Tensor:
        """Of one classifier, ``[N, V, C]``."""
        num_views, num_classes = cosines.shape[1:]
        columns = cosines / self.config.column_temperature
        target = (columns - log_sum_exp(columns, group)).softmax(2)  # [N, V, C]
        rows = (cosines / self.config.row_temperature).log_softmax(2)
        log_prediction = rows - log_sum_exp(rows, group) + math.log(total / num_classes)
        agreement = torch.einsum("nac,nbc->ab", target, log_prediction)  # [V, V]
        view = torch.arange(num_views, device=cosines.device)
        compared = (view[:, None] != view) & (torch.minimum(view[:, None], view) < _LARGE)
        return -sum_over_ranks(agreement[compared].sum(), group) / (total * compared.sum())
