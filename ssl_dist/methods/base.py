"""What a pretraining method is: a module that embeds a micro-batch, and a loss of the global batch's embeddings."""

from __future__ import annotations

import abc
from typing import ClassVar, Literal, NamedTuple

import pydantic
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssl_dist.augment import Recipe
from ssl_dist.backbones import Backbone
from ssl_dist.settings import BatchConfig


class MethodConfig(pydantic.BaseModel):
    """Base of the methods' settings; ``name`` chooses the method."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str

    def check(self, epochs: float, batch: BatchConfig) -> None:
        """Refuse, with a ValueError, what makes no sense in a run of this length and batch."""


class Views(NamedTuple):
    """What a method gets of N images.

    Attributes:
        crops: random views, ``[V_i, N, 3, S_i, S_i]`` for each run of views of one size, in the recipe's order.
        labels: int64 ``[N]``, -1: none, or not to be seen.
    """

    crops: tuple[Tensor, ...]
    labels: Tensor

    @property
    def alike(self) -> Tensor:
        """``[V, N, 3, S, S]`` where all views are of one size."""
        [crops] = self.crops
        return crops


class Progress(NamedTuple):
    """Where a run is: ``step`` steps of ``total_steps`` are done, which are ``epoch`` epochs."""

    step: int
    total_steps: int
    epoch: float


class Method(nn.Module, abc.ABC):
    """N images of a micro-batch (``embed``) or of this worker (``loss``), V views, D embedding.

    ``embed`` may use only its own micro-batch, so that workers merely share out micro-batches; what is of the whole
    batch belongs into ``loss``. Both are called more than once a step, and change nothing that they will read again:
    what a method carries from step to step (a queue, a slow copy) are buffers that ``after_step`` changes.

    Attributes:
        uses_labels: of none of the images, of all, or of ``batch.labelled`` of them; others' are hidden from it.
        needs_map: of the backbone, which is then a ``ConvolutionalBackbone``.
        num_views: the fewest and the most that ``embed`` takes of an image, None: any number.
        multi_crop: it takes views of several sizes.
        least_micro: images that it needs in a micro-batch, for BatchNorm.
    """

    Config: ClassVar[type[MethodConfig]]
    uses_labels: ClassVar[Literal["none", "some", "all"]] = "none"
    needs_map: ClassVar[bool] = False
    num_views: ClassVar[tuple[int, int | None]] = (2, 2)
    multi_crop: ClassVar[bool] = False
    least_micro: ClassVar[int] = 1

    def __init__(self, backbone: Backbone, config: MethodConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config

    def forward(self, views: Views) -> Tensor:
        """``embed``, under the name that wrappers of modules call."""
        return self.embed(views)

    @abc.abstractmethod
    def embed(self, views: Views) -> Tensor:
        """``[N, V, D]`` float32 or float64, with this micro-batch's own BatchNorm statistics."""

    @abc.abstractmethod
    def loss(self, embeddings: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
        """``[N, V, D]`` of this worker -> the loss of the global batch, exact in its gradient for these rows.

        A parameter that only the loss uses gets no gradient: what is learnt (a temperature too) belongs into ``embed``.
        """

    @classmethod
    def takes(cls, recipe: Recipe) -> bool:
        """Are these views as many, and as alike in size, as ``embed`` needs?"""
        fewest, most = cls.num_views
        alike = cls.multi_crop or len({view.size_px for view in recipe}) == 1
        return alike and fewest <= len(recipe) <= (most or len(recipe))

    @property
    def num_targets(self) -> int:
        """How many of the last views of the embeddings are targets: ``embed`` takes no gradient for them, so ``loss``
        need not have one there."""
        return 0

    @property
    def collapsed_loss(self) -> float | None:
        """What the loss is where the embeddings say nothing of the images, for methods that can fall for it."""
        return None

    def before_step(self, progress: Progress) -> None:
        """Before each step: schedules."""

    def after_step(self, embeddings: Tensor, progress: Progress, group: dist.ProcessGroup | None = None) -> None:
        """After each step's update, once, with what ``loss`` was given: slow copies follow, queues take in. Whole
        parameters can be read here at every ZeRO stage."""

    def pairs(self, embeddings: Tensor) -> Tensor | None:
        """``[N, 2, D]`` two views' embeddings of which the health is watched, None where there are none."""
        return embeddings[:, :2]


def embed_views(network: nn.Module, views: Tensor) -> Tensor:
    """``[V, N, ...]`` -> ``[N, V, D]``, all views in one forward pass; at least float32."""
    num_views, n = views.shape[:2]
    z = network(views.flatten(0, 1))  # [V * N, D]
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    embeddings: Tensor = z.view(num_views, n, -1).transpose(0, 1)
    return embeddings


def embed_crops(backbone: Backbone, head: nn.Module, crops: tuple[Tensor, ...]) -> Tensor:
    """``[V_i, N, 3, S_i, S_i]`` of each size -> ``[N, V, D]``: the backbone takes each size by itself, with BatchNorm
    statistics of that size, the head all views together."""
    features = torch.cat([embed_views(backbone, part) for part in crops], dim=1)  # [N, V, features]
    return embed_views(head, features.transpose(0, 1))


def projection_head(dim: int, hidden: int, out: int, num_layers: int, *, batch_norm: bool = True) -> nn.Sequential:
    """Linear layers with BatchNorm and ReLU between them, none after the last, which has no bias; without BatchNorm
    all have one."""
    layers: list[nn.Module] = []
    for _ in range(num_layers - 1):
        layers += [nn.Linear(dim, hidden, bias=not batch_norm), *([nn.BatchNorm1d(hidden)] if batch_norm else [])]
        layers.append(nn.ReLU(inplace=True))
        dim = hidden
    return nn.Sequential(*layers, nn.Linear(dim, out, bias=not batch_norm))
