"""Backbones by name: networks that turn an image into a feature vector. Weights are random, nothing is downloaded.

The stem of a ResNet comes before its stages:

- "standard": 7 x 7 convolution of stride 2 and max-pooling, for 96 px and more;
- "small": 3 x 3 convolution of stride 1, no pooling, for 32 px (SimCLR, arXiv 2002.05709, appendix B.9);
- "half": 3 x 3 convolution of stride 2, no pooling, a quarter of the work of "small".
"""

from __future__ import annotations

import difflib
from collections.abc import Collection

from ssl_dist.backbones import built_in, torchvision_models
from ssl_dist.backbones.base import KNOWN_INPUTS, Backbone, ConvolutionalBackbone, MeanStd, Stem
from ssl_dist.backbones.torchvision_models import imagenet_input
from ssl_dist.errors import ConfigError

Sizes = Collection[int]  # pixels a side

__all__ = [
    "KNOWN_INPUTS",
    "Backbone",
    "ConvolutionalBackbone",
    "MeanStd",
    "Stem",
    "build",
    "check",
    "imagenet_input",
    "names",
    "with_map",
]


def names() -> list[str]:
    """Return all backbones' names: built-in ones, then torchvision's."""
    return [*built_in.NAMES, *torchvision_models.names()]


def with_map() -> list[str]:
    """Return the names for which ``build`` makes a ``ConvolutionalBackbone``."""
    return [*built_in.NAMES]


def build(
    name: str, *, stem: Stem = "standard", width: int | None = None, dropout: float = 0.0, image_size: int | None = None
) -> Backbone:
    """Build a backbone with random weights.

    Args:
        name: one of ``names()``. ``resnet8`` and ``resnet20`` are the CIFAR networks of He et al. (arXiv 1512.03385,
            section 4.2): three stages of 1 and 3 basic blocks. ``wrn45-2`` is a wide ResNet of 45 convolutions and 128
            features, made for the stem "small". ``convnet`` is the four-layer network of this project's seed study,
            ``autoencoder`` the encoder of G-SimCLR's (arXiv 2009.12007). Other names are torchvision's.
        stem: see the module's docstring; only ResNets have a choice, the others take "standard" only.
        width: channels of the first stage of resnet8 and resnet20 (None: 16); other backbones have one width.
        dropout: probability of dropout after each ReLU of the convnet; other backbones have none.
        image_size: pixels a side (None: 224). Transformers are made for it; others are checked to take it.

    Returns:
        A module with ``.dim``, the number of features; built-in ones are a ``ConvolutionalBackbone``.

    Raises:
        ConfigError: there is no such name, or the backbone does not have the option or take the size.
    """
    check(name, stem=stem, width=width, dropout=dropout, image_sizes=() if image_size is None else (image_size,))
    if name in built_in.NAMES:
        return built_in.build(name, stem=stem, width=width, dropout=dropout)
    return torchvision_models.build(name, stem=stem, image_size=image_size)


def check(
    name: str, *, stem: Stem = "standard", width: int | None = None, dropout: float = 0.0, image_sizes: Sizes = ()
) -> None:
    """Check the options of ``build``, for images of several sizes, without making weights.

    Raises:
        ConfigError: ``build`` would refuse the options, or the backbone one of the sizes.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        raise ConfigError(
            f"backbone {name!r}: it is one of {', '.join(built_in.NAMES)}, or the name of a classification model of"
            " torchvision" + (f"; did you mean {near[0]}?" if near else "")
        )
    if dropout and name != "convnet":
        raise ConfigError(f"backbone {name} has no dropout (given {dropout}): only convnet has")
    if width is not None and name not in ("resnet8", "resnet20"):
        raise ConfigError(f"backbone {name} has one width (given {width}): only resnet8 and resnet20 take another")
    if name in ("convnet", "autoencoder") and stem != "standard":
        raise ConfigError(f"backbone {name} has no stem to choose (given {stem!r}): ResNets have")
    if name not in built_in.NAMES:
        torchvision_models.check(name, stem, image_sizes)
