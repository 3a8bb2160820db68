"""Base class of all pretraining methods: a module that embeds a micro-batch, and a loss over the global batch.

N images of a micro-batch (in ``embed``) or of this worker (in ``loss``), V views of an image, D dimensions.
"""

from __future__ import annotations

import abc
from collections.abc import Collection
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ssl_dist.backbones import Backbone
from ssl_dist.collectives import Group, RowCounts, sum_over_ranks
from ssl_dist.errors import ConfigError
from ssl_dist.methods.settings import MethodConfig


class Views(NamedTuple):
    """Views and labels of N images.

    Attributes:
        crops: random views, ``[V_i, N, 3, S_i, S_i]`` for each run of views of one size, in the policy's order.
        labels: int64 ``[N]``; -1: the image has no label, or the method may not see it.
    """

    crops: tuple[Tensor, ...]
    labels: Tensor

    @property
    def stacked(self) -> Tensor:
        """``[V, N, 3, S, S]``, where all views have one size."""
        [crops] = self.crops
        return crops


class TrainingProgress(NamedTuple):
    """How far training has come: ``step`` of ``total_steps`` steps are done, which make ``epoch`` epochs."""

    step: int
    total_steps: int
    epoch: float


class Method(nn.Module, abc.ABC):
    """Backbone, heads and loss of one pretraining method.

    ``embed`` turns the views of a micro-batch into *outputs* ``[N, V, D]``, one row for each image; ``loss`` takes the
    outputs of all micro-batches. They are embeddings in most methods; each method's ``embed`` says what they are.

    ``embed`` may use its own micro-batch only, because any worker may hold any micro-batch. Whatever needs the whole
    batch belongs in ``loss``. ``embed`` may see the same micro-batch twice in a step (cached gradients), so neither
    changes any state. State that lasts from step to step (a queue, a slow copy) is kept in buffers, which only
    ``after_step`` changes.

    Attributes:
        num_targets: how many of the last entries along V are targets. ``embed`` computes them without a gradient, so
            ``loss`` need not give them one.
        collapsed_loss: the loss of outputs that are equal for all images; None: the loss does not show collapse.
        loss_falls: whether the loss of a run that learns is lower than at its start. It may not be where the loss is
            measured against what moves: a slow copy, a queue that fills, codes, labels that the network gives.
        follows_length: whether a step depends on ``TrainingProgress.total_steps``, so that no run can be made longer.
        freezable: names of parameters that may be frozen.
        frozen: whether they are in this step, which ``before_step`` tells: they and all that the optimizer keeps of
            them stay as they are. ``embed`` gives them a gradient of 0, because ZeRO treats a missing one differently.
    """

    Config: ClassVar[type[MethodConfig]]
    loss_falls: ClassVar[bool] = True
    follows_length: ClassVar[bool] = False
    freezable: ClassVar[tuple[str, ...]] = ()
    frozen: bool = False
    num_targets: int = 0
    collapsed_loss: float | None = None

    def __init__(self, backbone: Backbone, config: MethodConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config

    def forward(self, views: Views) -> Tensor:
        """Call ``embed``; wrappers of modules call ``forward``."""
        return self.embed(views)

    @abc.abstractmethod
    def embed(self, views: Views) -> Tensor:
        """Return outputs ``[N, V, D]``, float32 or float64, with this micro-batch's own BatchNorm statistics.

        V is the number of views, or more (see ``num_targets``).
        """

    @abc.abstractmethod
    def loss(self, outputs: Tensor, group: Group = None) -> Tensor:
        """Return the loss of the global batch, whose gradient is exact for this worker's ``outputs`` ``[N, V, D]``.

        A parameter that only ``loss`` uses gets no gradient: ``embed`` must use whatever is learnt (a temperature too).
        """

    @classmethod
    def made_anew(cls, backbone: Backbone, config: MethodConfig) -> Collection[str]:
        """Return the backbone's tensors that keep their random values where training starts from weights."""
        return ()

    def depths(self) -> dict[str, int]:
        """Return how many layers lie between each parameter of the backbone and the head, by the parameter's name."""
        return {f"backbone.{name}": depth for name, depth in self.backbone.depths().items()}

    def before_step(self, progress: TrainingProgress) -> None:
        """Set what depends on the step; called before each step."""

    def after_step(self, outputs: Tensor, progress: TrainingProgress, group: Group = None) -> None:
        """Update slow copies and queues; called once after each update, with the outputs that ``loss`` had.

        At every ZeRO stage, parameters are whole here.
        """

    def pairs(self, outputs: Tensor) -> Tensor | None:
        """Return two views' embeddings ``[N, 2, D]`` for the collapse monitor; None: the method has none."""
        return outputs[:, :2]


class LossMethod(Method):
    """Method whose ``embed`` returns the loss of each view, ``[N, V, 1]``, for any number of views."""

    def loss(self, outputs: Tensor, group: Group = None) -> Tensor:
        """Return the mean over the views of the global batch."""
        return sum_over_ranks(outputs.sum(), group) / (RowCounts.of(outputs, group).total * outputs.shape[1])

    def pairs(self, outputs: Tensor) -> None:
        return None


def known_classes(num_classes: int | None) -> int:
    """Return the number of a classifier's classes.

    Raises:
        ConfigError: it is None, because the config was not resolved with its store.
    """
    if num_classes is None:
        raise ConfigError("method.num_classes is not known: set it, or resolve the settings with their store")
    return num_classes


def embed_views(network: nn.Module, views: Tensor) -> Tensor:
    """Embed all views in one forward pass: ``[V, N, ...]`` -> ``[N, V, D]``, float32 or wider."""
    num_views, n = views.shape[:2]
    z: Tensor = network(views.flatten(0, 1))  # [V * N, D]
    return z.to(torch.promote_types(z.dtype, torch.float32)).view(num_views, n, -1).transpose(0, 1)


def embed_views_apart(network: nn.Module, views: Tensor) -> Tensor:
    """Embed each view in its own forward pass, with its own BatchNorm statistics: ``[V, N, ...]`` -> ``[N, V, D]``."""
    return torch.cat([embed_views(network, view) for view in views.split(1)], dim=1)


def embed_crops(backbone: Backbone, head: nn.Module, crops: tuple[Tensor, ...]) -> Tensor:
    """Embed views of several sizes, ``[V_i, N, 3, S_i, S_i]`` of each -> ``[N, V, D]``.

    The backbone takes each size in its own forward pass, with its own BatchNorm statistics; the head takes all views
    together.
    """
    features = torch.cat([embed_views(backbone, views) for views in crops], dim=1)  # [N, V, features]
    return embed_views(head, features.transpose(0, 1))


def projection_head(dim: int, hidden: int, out: int, num_layers: int, *, batch_norm: bool = True) -> nn.Sequential:
    """Build linear layers with BatchNorm and ReLU between them.

    With BatchNorm no linear layer has a bias, without it all have one.
    """
    layers: list[nn.Module] = []
    for _ in range(num_layers - 1):
        layers += [nn.Linear(dim, hidden, bias=not batch_norm), *([nn.BatchNorm1d(hidden)] if batch_norm else [])]
        layers.append(nn.ReLU(inplace=True))
        dim = hidden
    return nn.Sequential(*layers, nn.Linear(dim, out, bias=not batch_norm))
