"""SwAV: a view predicts which prototypes another view of the image is assigned to, where all prototypes get equal use.

Source: Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", arXiv 2006.09882;
its code, facebookresearch/swav, for what the paper leaves open (the queue of each view, what is frozen).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ssl_dist.backbones import Backbone
from ssl_dist.collectives import Group, RowCounts, log_sum_exp_over_ranks, sum_over_ranks
from ssl_dist.methods.base import TrainingProgress, Views, embed_crops
from ssl_dist.methods.projection import ProjectionMethod
from ssl_dist.methods.settings import SwAVConfig

_CODED = 2  # the first two views give codes; views of another size come after them (multi-crop)


class SwAV(ProjectionMethod):
    """Projection head, K prototypes, Sinkhorn-Knopp over the global batch; N images, V views, D dimensions.

    A view's *code* is the soft assignment of its embedding to the prototypes. The paper sets the prototypes back to
    length 1 before each step. Here they are divided by their length wherever they are used, which leaves the
    optimizer's (and ZeRO's) copies alone. In the authors' code the head's last layer has a bias, and the queue begins
    to fill in the epoch from which on it is used; here it fills from the first step (docs/differences.md).

    A loss that stays at ln K (8.006 for 3,000) means collapse: all images have one embedding, so every code is uniform
    and trivial to predict. Known remedies are a smaller ``epsilon`` (0.03), prototypes that stay frozen for longer, and
    fewer or weaker crops. The README of the authors' code has more.
    """

    Config = SwAVConfig
    config: SwAVConfig
    loss_falls = False
    num_targets = _CODED
    freezable = ("prototypes",)
    queue: Tensor  # [Q, 2, D], embeddings of the two coded views
    taken: Tensor  # number of images whose embeddings the queue has taken so far
    codebook: Tensor  # [K, D], copy of the prototypes at the last update: ``loss`` has them whole under ZeRO-3 too

    def __init__(self, backbone: Backbone, config: SwAVConfig) -> None:
        super().__init__(backbone, config)
        self.collapsed_loss = math.log(config.prototypes)
        self.prototypes = nn.Parameter(normalize(torch.randn(config.prototypes, config.projection_dim), dim=1))
        if config.queue:
            self.register_buffer("queue", torch.zeros(config.queue, _CODED, config.projection_dim))
            self.register_buffer("taken", torch.zeros((), dtype=torch.int64))
            self.register_buffer("codebook", self.prototypes.detach().clone())
        self.before_step(TrainingProgress(0, 0, 0.0))

    def before_step(self, progress: TrainingProgress) -> None:
        """Freeze or train the prototypes, and use the queue or not, by the epoch."""
        self.frozen = progress.epoch < self.config.freeze_prototypes_epochs
        self._queue_due = progress.epoch >= self.config.queue_from_epoch

    def embed(self, views: Views) -> Tensor:
        """Return ``[N, V + 2, K + D]``: each view's scores (cosines with the prototypes), then its embedding.

        The last two rows of an image repeat the two coded views, without a gradient.
        """
        z = normalize(embed_crops(self.backbone, self.projection_head, views.crops), dim=2)  # [N, V, D]
        prototypes = self.prototypes.detach() + 0 * self.prototypes if self.frozen else self.prototypes
        with torch.autocast(z.device.type, enabled=False):  # bfloat16 would be off by 0.1 in scores / epsilon
            scores = z @ normalize(prototypes, dim=1).T  # [N, V, K]
        rows = torch.cat([scores, z], dim=2)
        return torch.cat([rows, rows[:, :_CODED].detach()], dim=1)

    def loss(self, outputs: Tensor, group: Group = None) -> Tensor:
        """Return the mean of ``-sum_k code_a[k] log softmax(scores_v / temperature)[k]`` (equations 1 and 2).

        It runs over the images, the two coded views a, and the V - 1 other views v.
        """
        row_counts = RowCounts.of(outputs, group)
        scores = outputs[:, :, : self.config.prototypes]
        with torch.autocast(outputs.device.type, enabled=False):
            codes = self._codes(scores[:, -_CODED:], row_counts)  # [N, 2, K]
            log_p = (scores[:, :-_CODED] / self.config.temperature).log_softmax(2)  # [N, V, K]
            agreement = torch.einsum("nak,nvk->av", codes, log_p)  # [2, V]
        others = ~torch.eye(*agreement.shape, dtype=torch.bool, device=agreement.device)
        total = sum_over_ranks(agreement[others].sum(), group)
        return -total / (row_counts.total * others.sum())

    @torch.no_grad()
    def _codes(self, scores: Tensor, row_counts: RowCounts) -> Tensor:
        """Turn scores ``[N, 2, K]`` into codes ``[N, 2, K]``.

        Every rank has the whole queue, and each adds different rows of it to the assignment.
        """
        rows = [scores]
        if self.config.queue and self._queue_due and self.taken >= self.config.queue:
            queued = self.queue[row_counts.rank :: len(row_counts.counts)]
            rows.append(queued.to(scores) @ self.codebook.to(scores).T)
        config = self.config
        return sinkhorn(torch.cat(rows), config.epsilon, config.sinkhorn_iterations, row_counts.group)[: len(scores)]

    @torch.no_grad()
    def after_step(self, outputs: Tensor, progress: TrainingProgress, group: Group = None) -> None:
        """Put the global batch's embeddings of the coded views into the queue, in the global order."""
        if not self.config.queue:
            return
        z = self.pairs(outputs)
        z = RowCounts.of(z, group).gather(z)[-self.config.queue :]  # [B, 2, D]
        rows = (self.taken + torch.arange(len(z), device=z.device)) % self.config.queue
        self.queue[rows] = z.to(self.queue)
        self.taken += len(z)
        self.codebook.copy_(normalize(self.prototypes, dim=1))

    def pairs(self, outputs: Tensor) -> Tensor:
        """Return the coded views' embeddings, ``[N, 2, D]``."""
        return outputs[:, -_CODED:, self.config.prototypes :]


def sinkhorn(scores: Tensor, epsilon: float, iterations: int, group: Group = None) -> Tensor:
    """Assign all ranks' images softly to prototypes, such that all prototypes get equal use (Sinkhorn-Knopp).

        Q = exp(scores / epsilon); in turn divide by the sum of each prototype, then by the sum of each image

    Logarithms are kept until the end, so that no epsilon overflows. The paper's factors 1/K and 1/B cancel in the last
    division.

    Args:
        scores: ``[n, ..., K]`` of this rank (n may differ and be 0); each index of ``...`` is assigned by itself.
        epsilon: temperature of equation 3, greater than 0.
        iterations: 1 or more.

    Returns:
        Codes ``[n, ..., K]``, float32 or wider; the codes of an image sum to 1.

    Source: arXiv 2006.09882, equations 3 to 5 and appendix A.1.
    """
    log_q = scores.to(torch.promote_types(scores.dtype, torch.float32)) / epsilon
    for _ in range(iterations):
        log_q = (log_q - log_sum_exp_over_ranks(log_q, group)).log_softmax(-1)
    return log_q.exp()
