"""What a pretraining method is: a module that embeds a micro-batch, and a loss of the global batch's embeddings."""

from __future__ import annotations

import abc
from typing import ClassVar

import pydantic
import torch.distributed as dist
from torch import Tensor, nn

from ssl_dist.backbones import Backbone


class MethodConfig(pydantic.BaseModel):
    """Base of the methods' settings; ``name`` chooses the method."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str


class Method(nn.Module, abc.ABC):
    """N images of a micro-batch (``embed``) or of this worker (``loss``), V views, D embedding.

    ``embed`` may use only its own micro-batch, so that workers merely share out micro-batches; what is of the whole
    batch belongs into ``loss``.
    """

    Config: ClassVar[type[MethodConfig]]

    def __init__(self, backbone: Backbone, config: MethodConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config

    def forward(self, views: Tensor) -> Tensor:
        """``embed``, under the name that wrappers of modules call."""
        return self.embed(views)

    @abc.abstractmethod
    def embed(self, views: Tensor) -> Tensor:
        """``[V, N, 3, S, S]`` -> ``[N, V, D]`` float32 or float64, with this micro-batch's own BatchNorm statistics."""

    @abc.abstractmethod
    def loss(self, embeddings: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
        """``[N, V, D]`` of this worker -> the loss of the global batch, exact in its gradient for these rows.

        A parameter that only the loss uses gets no gradient: what is learnt (a temperature too) belongs into ``embed``.
        """
