"""Supervised learning: backbone, classifier, cross-entropy; from random weights, or fine-tuning of some layers.

Source of label smoothing: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", arXiv
1512.00567, section 7.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Self

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ssl_dist.backbones import Backbone
from ssl_dist.errors import ConfigError
from ssl_dist.methods.base import LossMethod, Views, embed_views, known_classes
from ssl_dist.methods.settings import MethodConfig, SupervisedConfig


class Supervised(LossMethod):
    """Backbone and classifier, which classifies every view of an image.

    Layers that ``config.unfreeze`` leaves out are frozen: they have no gradient, and they are in evaluation mode also
    in training, so that BatchNorm uses its statistics and keeps them.
    """

    Config = SupervisedConfig
    config: SupervisedConfig

    def __init__(self, backbone: Backbone, config: SupervisedConfig) -> None:
        super().__init__(backbone, config)
        num_classes = known_classes(config.num_classes)
        if config.hidden is None:
            self.classifier: nn.Module = nn.Linear(backbone.dim, num_classes)
        else:
            layers = nn.Linear(backbone.dim, config.hidden), nn.ReLU(inplace=True)
            self.classifier = nn.Sequential(*layers, nn.Linear(config.hidden, num_classes))
        self._trained_parts = _trained_parts(backbone, config)  # kept: ZeRO-3 leaves parameters no shape to tell it by
        trained = trained_parameters(backbone, config)
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(name in trained)

    @classmethod
    def made_anew(cls, backbone: Backbone, config: MethodConfig) -> Collection[str]:
        """Return the tensors of the trained layers, where ``config.anew`` has them start from random weights."""
        assert isinstance(config, SupervisedConfig)
        if not config.anew:
            return ()
        parts = tuple(f"{part}." for part in _trained_parts(backbone, config))
        return [name for name in backbone.state_dict() if name.startswith(parts)]

    def train(self, mode: bool = True) -> Self:
        """Set the mode of training or evaluation; frozen layers are always in the latter."""
        super().train(mode)
        if self.config.num_trained is not None:
            self.backbone.eval()
            for part in self._trained_parts:
                self.backbone.get_submodule(part).train(mode)
        return self

    def embed(self, views: Views) -> Tensor:
        """Return each view's cross-entropy, ``[N, V, 1]``."""
        logits = embed_views(nn.Sequential(self.backbone, self.classifier), views.stacked)  # [N, V, K]
        labels = views.labels[:, None].expand(logits.shape[:2])
        smoothing = self.config.label_smoothing
        # a worker without a micro-batch has labels of -1 only
        losses = cross_entropy(logits.mT, labels, ignore_index=-1, label_smoothing=smoothing, reduction="none")
        return losses[:, :, None]


def trained_parameters(backbone: Backbone, config: SupervisedConfig) -> Collection[str]:
    """Return the names of the backbone's parameters that are trained.

    Raises:
        ConfigError: the backbone has fewer layers than ``config.unfreeze`` asks for.
    """
    depths, count = backbone.depths(), config.num_trained
    most = len(backbone.layers()) + 1
    if count is not None and count > most:
        raise ConfigError(
            f"method.unfreeze {config.unfreeze}: the backbone has {most - 1} layers, {most} with the classifier: set it"
            f" to last:{most} or less"
        )
    return [name for name, depth in depths.items() if count is None or depth < count]


def _trained_parts(backbone: Backbone, config: SupervisedConfig) -> list[str]:
    """Return the names of the backbone's modules that are trained, where not all are."""
    layers = backbone.layers()
    first = len(layers) + 1 - (config.num_trained or 0)
    return [part for layer in layers[first:] for part in layer]
