"""Backbones by name: images in, one feature vector an image out. Weights are random, nothing is downloaded.

``stem`` is what stands before the stages of a ResNet: "standard", 7 x 7 stride 2 and max-pooling, for 96 px and more;
"small", 3 x 3 stride 1 and no pooling, for 32 px (SimCLR, arXiv 2002.05709, appendix B.9); "half", 3 x 3 stride 2 and
no pooling, a quarter of the work of "small".
"""

from __future__ import annotations

import difflib
from collections.abc import Collection

from ssl_dist.backbones import own, torchvision_models
from ssl_dist.backbones.base import Backbone, ConvolutionalBackbone, Stem
from ssl_dist.errors import ConfigError

__all__ = ["Backbone", "ConvolutionalBackbone", "Stem", "build", "check", "names", "with_map"]


def names() -> list[str]:
    """Ours, then torchvision's."""
    return [*own.NAMES, *torchvision_models.names()]


def with_map() -> list[str]:
    """Those that ``build`` makes a ``ConvolutionalBackbone`` of."""
    return [*own.NAMES]


def build(
    name: str,
    *,
    stem: Stem = "standard",
    width: int | None = None,
    dropout: float = 0.0,
    image_size: int | None = None,
) -> Backbone:
    """A backbone with random weights.

    Args:
        name: one of ``names()``. ``resnet8`` and ``resnet20`` are the CIFAR networks of He et al. (arXiv 1512.03385,
            section 4.2): three stages of 1 and 3 basic blocks. ``wrn45-2`` is a wide ResNet of 45 convolutions and 128
            features, made for the stem "small". ``convnet`` is the four-layer network of this project's seed study,
            ``autoencoder`` the encoder of G-SimCLR's (arXiv 2009.12007). Others are torchvision's.
        stem: see the module; only ResNets have one, the others take "standard" only.
        width: channels of the first stage of resnet8 and resnet20 (None: 16); only those take it.
        dropout: of the convnet, after each ReLU; only it takes one.
        image_size: pixels a side, for transformers that are made for one size (None: 224), and to be checked.

    Returns:
        A module with ``.dim``, the number of features; ours are a ``ConvolutionalBackbone``.

    Raises:
        ConfigError: unknown name, an option that the backbone does not have, a size that it does not take.
    """
    check(name, stem=stem, width=width, dropout=dropout, image_sizes=() if image_size is None else (image_size,))
    if name in own.NAMES:
        return own.build(name, stem=stem, width=width, dropout=dropout)
    return torchvision_models.build(name, stem=stem, image_size=image_size)


def check(
    name: str,
    *,
    stem: Stem = "standard",
    width: int | None = None,
    dropout: float = 0.0,
    image_sizes: Collection[int] = (),
) -> None:
    """What ``build`` checks, for images of several sizes, without making weights.

    Raises:
        ConfigError: as ``build``.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        raise ConfigError(
            f"backbone {name!r}: it is one of {', '.join(own.NAMES)}, or a classification model of torchvision by its"
            " name there" + (f"; did you mean {near[0]}?" if near else "")
        )
    if dropout and name != "convnet":
        raise ConfigError(f"backbone {name} has no dropout (given {dropout}): only convnet has")
    if width is not None and name not in ("resnet8", "resnet20"):
        raise ConfigError(f"backbone {name} has one width (given {width}): only resnet8 and resnet20 take another")
    if name in ("convnet", "autoencoder") and stem != "standard":
        raise ConfigError(f"backbone {name} has no stem to choose (given {stem!r}): ResNets have")
    if name not in own.NAMES:
        torchvision_models.check(name, stem, image_sizes)
