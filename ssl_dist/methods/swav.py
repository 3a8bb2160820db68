"""SwAV: a view predicts to which prototypes another view of the image belongs, when all prototypes share the images.

Source: Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", arXiv 2006.09882;
its code, facebookresearch/swav, for what the paper leaves open (the queue of each view, what is frozen).
"""

from __future__ import annotations

import math
from typing import Literal

import pydantic
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import normalize

from ssl_dist.backbones import Backbone
from ssl_dist.collectives import RowCounts, log_sum_exp, sum_over_ranks
from ssl_dist.methods.base import Method, MethodConfig, Progress, Views, embed_crops, projection_head
from ssl_dist.settings import BatchConfig

_CODED = 2  # the first two views give codes; views of another size come after them (multi-crop)


class SwAV(Method):
    """Projection head, K prototypes, Sinkhorn-Knopp over the global batch; N images, V views, D dimensions.

    The paper sets the prototypes back to length 1 before each step. Here they are divided by their length wherever
    they are used, which leaves the optimizer's (and ZeRO's) copies alone.

    A loss that stays at ln K (8.006 for 3,000) is collapse: all images are embedded alike, so that equal shares are
    the only codes, and trivial to predict. Known remedies: a smaller ``epsilon`` (0.03), prototypes frozen for longer,
    fewer or weaker crops. The README of the authors' code has more.
    """

    class Config(MethodConfig):
        """Defaults are the paper's for ImageNet with a batch of 4,096; for 256 it has a queue of 3,840."""

        name: Literal["swav"] = "swav"
        temperature: float = pydantic.Field(0.1, gt=0)
        prototypes: int = pydantic.Field(3000, ge=2)
        epsilon: float = pydantic.Field(0.05, gt=0)  # of Sinkhorn-Knopp; the smaller, the harder the codes
        sinkhorn_iterations: int = pydantic.Field(3, ge=1)
        freeze_prototypes_epochs: float = pydantic.Field(1, ge=0)
        queue: int = pydantic.Field(0, ge=0)  # earlier embeddings that take part in the assignment; 0: none
        queue_from_epoch: float = pydantic.Field(15, ge=0)  # and not before it is full
        projection_layers: int = pydantic.Field(2, ge=1, le=3)
        projection_hidden: int | None = pydantic.Field(None, ge=1)  # None: the backbone's dim
        projection_dim: int = pydantic.Field(128, ge=1)

        def check(self, epochs: float, batch: BatchConfig) -> None:
            if self.freeze_prototypes_epochs >= epochs:
                raise ValueError(
                    f"method.freeze_prototypes_epochs {self.freeze_prototypes_epochs:g}: prototypes would learn nothing"
                    f" in a run of {epochs:g} epochs: set it lower"
                )
            if self.queue and self.queue_from_epoch >= epochs:
                raise ValueError(
                    f"method.queue_from_epoch {self.queue_from_epoch:g}: the queue would take no part in a run of"
                    f" {epochs:g} epochs: set it lower, or method.queue=0"
                )

    config: Config
    num_views = (2, None)
    multi_crop = True
    queue: Tensor  # [Q, 2, D], of each of the two views
    taken: Tensor  # how many images' embeddings it has taken in so far
    codebook: Tensor  # [K, D]: the prototypes as the step began; ZeRO-3 has them in parts where ``loss`` is called

    def __init__(self, backbone: Backbone, config: SwAV.Config) -> None:
        super().__init__(backbone, config)
        self.projection_head = projection_head(
            backbone.dim, config.projection_hidden or backbone.dim, config.projection_dim, config.projection_layers
        )
        self.prototypes = nn.Parameter(normalize(torch.randn(config.prototypes, config.projection_dim), dim=1))
        if config.queue:
            self.register_buffer("queue", torch.zeros(config.queue, _CODED, config.projection_dim))
            self.register_buffer("taken", torch.zeros((), dtype=torch.int64))
            self.register_buffer("codebook", self.prototypes.detach().clone())
        self.before_step(Progress(0, 0, 0.0))

    @property
    def num_targets(self) -> int:
        return _CODED

    @property
    def collapsed_loss(self) -> float:
        return math.log(self.config.prototypes)

    def before_step(self, progress: Progress) -> None:
        self._frozen = progress.epoch < self.config.freeze_prototypes_epochs
        self._queue_due = progress.epoch >= self.config.queue_from_epoch

    def embed(self, views: Views) -> Tensor:
        """``[N, V + 2, K + D]``: of each view the scores (cosines with the prototypes), then the embedding itself; the
        two views that give codes once more at the end, without a gradient."""
        z = normalize(embed_crops(self.backbone, self.projection_head, views.crops), dim=2)  # [N, V, D]
        # frozen: a gradient of 0, not none, which the ZeRO stages would treat each in their way. AdamW's first steps
        # afterwards are longer for it: 1.6 times the rate after 49 such steps, 6 times after 2,000.
        prototypes = self.prototypes.detach() + 0 * self.prototypes if self._frozen else self.prototypes
        with torch.autocast(z.device.type, enabled=False):  # bfloat16 would be off by 0.1 in scores / epsilon
            scores = z @ normalize(prototypes, dim=1).T  # [N, V, K]
        rows = torch.cat([scores, z], dim=2)
        return torch.cat([rows, rows[:, :_CODED].detach()], dim=1)

    def loss(self, embeddings: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
        """Mean over images, the two coded views a and the V - 1 other views v of
        ``-sum_k code_a[k] log softmax(scores_v / temperature)[k]`` (equations 1 and 2)."""
        shares = RowCounts.of(embeddings, group)
        scores = embeddings[:, :, : self.config.prototypes]
        with torch.autocast(embeddings.device.type, enabled=False):
            codes = self._codes(scores[:, -_CODED:], shares)  # [N, 2, K]
            log_p = (scores[:, :-_CODED] / self.config.temperature).log_softmax(2)  # [N, V, K]
            agreement = torch.einsum("nak,nvk->av", codes, log_p)  # [2, V]
        others = ~torch.eye(*agreement.shape, dtype=torch.bool, device=agreement.device)
        total = sum_over_ranks(agreement[others].sum(), group)
        return -total / (shares.total * others.sum())

    @torch.no_grad()
    def _codes(self, scores: Tensor, shares: RowCounts) -> Tensor:
        """Scores ``[N, 2, K]`` -> codes ``[N, 2, K]``; each rank brings its share of the queue, which all have."""
        rows = [scores]
        if self.config.queue and self._queue_due and self.taken >= self.config.queue:
            held = self.queue[shares.rank :: len(shares.counts)]
            rows.append(held.to(scores) @ self.codebook.to(scores).T)
        config = self.config
        return sinkhorn(torch.cat(rows), config.epsilon, config.sinkhorn_iterations, shares.group)[: len(scores)]

    @torch.no_grad()
    def after_step(self, embeddings: Tensor, progress: Progress, group: dist.ProcessGroup | None = None) -> None:
        """The global batch's embeddings of the coded views go into the queue, in the global order."""
        if not self.config.queue:
            return
        z = embeddings[:, -_CODED:, self.config.prototypes :]
        z = RowCounts.of(z, group).gather(z)[-self.config.queue :]  # [B, 2, D]
        places = (self.taken + torch.arange(len(z), device=z.device)) % self.config.queue
        self.queue[places] = z.to(self.queue)
        self.taken += len(z)
        self.codebook.copy_(normalize(self.prototypes, dim=1))

    def pairs(self, embeddings: Tensor) -> Tensor:
        return embeddings[:, -_CODED:, self.config.prototypes :]


def sinkhorn(scores: Tensor, epsilon: float, iterations: int, group: dist.ProcessGroup | None = None) -> Tensor:
    """Soft assignment of all ranks' images to prototypes that take equal shares of them (Sinkhorn-Knopp).

        Q = exp(scores / epsilon); in turn divide by the sum of each prototype, then by the sum of each image

    Logarithms are kept until the end, so no epsilon overflows. The paper's 1/K and 1/B fall out in the last division.

    Args:
        scores: ``[n, ..., K]`` of this rank (n may differ and be 0), apart for each place of ``...``.
        epsilon: of equation 3, greater than 0.
        iterations: 1 or more.
        group: None: the default group, or this process alone where there is none.

    Returns:
        Codes ``[n, ..., K]``, of at least float32; those of an image add up to 1.

    Source: arXiv 2006.09882, equations 3 to 5 and appendix A.1.
    """
    log_q = scores.to(torch.promote_types(scores.dtype, torch.float32)) / epsilon
    for _ in range(iterations):
        log_q = (log_q - log_sum_exp(log_q, group)).log_softmax(-1)
    return log_q.exp()
