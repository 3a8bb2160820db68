"""Base of methods that have a projection head behind the backbone."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from ssl_dist.backbones import Backbone
from ssl_dist.methods.base import Method, projection_head
from ssl_dist.methods.settings import ProjectionConfig


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
