"""Base of methods that have a projection head behind the backbone: its settings, and the module that holds it."""

from __future__ import annotations

from typing import Annotated, ClassVar

import pydantic
from torch import nn

from ssl_dist.backbones import Backbone
from ssl_dist.methods.base import Method, MethodConfig, projection_head

# The descriptions stand in the types, so that a method may change a default and keep them.
HeadLayers = Annotated[int, pydantic.Field(ge=1, le=3, description="Number of linear layers of the projection head.")]
HeadHidden = Annotated[
    Annotated[int, pydantic.Field(ge=1)] | None,
    pydantic.Field(description="Features of the projection head's hidden layers; `None`: as many as the backbone has."),
]
HeadDim = Annotated[int, pydantic.Field(ge=1, description="Features that the projection head gives.")]


class ProjectionConfig(MethodConfig):
    """Settings of a method with a projection head."""

    projection_layers: HeadLayers = 2
    projection_hidden: HeadHidden = None
    projection_dim: HeadDim = 128


class ProjectionMethod(Method):
    """Method with a projection head behind the backbone.

    Attributes:
        head_batch_norm: whether the head's hidden layers have BatchNorm.
    """

    config: ProjectionConfig
    head_batch_norm: ClassVar[bool] = True

    def __init__(self, backbone: Backbone, config: ProjectionConfig) -> None:
        super().__init__(backbone, config)
        hidden, out, layers = config.projection_hidden or backbone.dim, config.projection_dim, config.projection_layers
        self.projection_head = projection_head(backbone.dim, hidden, out, layers, batch_norm=self.head_batch_norm)

    @property
    def encoder(self) -> nn.Module:
        """Backbone and projection head, one after the other."""
        return nn.Sequential(self.backbone, self.projection_head)
