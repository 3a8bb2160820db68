"""Backbones by name: networks that turn an image into a feature vector. Weights are random, nothing is downloaded.

Those of timm, which is optional, have names that begin with "timm/".

The stem of a ResNet comes before its stages:

- "standard": 7 x 7 convolution of stride 2 and max-pooling, for 96 px and more;
- "small": 3 x 3 convolution of stride 1, no pooling, for 32 px (SimCLR, arXiv 2002.05709, appendix B.9);
- "half": 3 x 3 convolution of stride 2, no pooling, a quarter of the work of "small".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ssl_dist.backbones import catalogue
from ssl_dist.backbones.catalogue import (
    KNOWN_INPUTS,
    NO_OPTIONS,
    MeanStd,
    Sizes,
    Stem,
    check,
    map_stride,
    names,
    with_map,
)
from ssl_dist.lazy import importer

if TYPE_CHECKING:
    from ssl_dist.backbones.base import Backbone, ConvolutionalBackbone
    from ssl_dist.backbones.without_values import WithoutValues

__all__ = [
    "KNOWN_INPUTS",
    "NO_OPTIONS",
    "Backbone",
    "ConvolutionalBackbone",
    "MeanStd",
    "Sizes",
    "Stem",
    "WithoutValues",
    "build",
    "check",
    "classes_of",
    "expect_features",
    "input_of",
    "map_stride",
    "names",
    "with_map",
]
__getattr__ = importer(__name__, base=("Backbone", "ConvolutionalBackbone"), without_values=("WithoutValues",))


def build(
    name: str,
    *,
    stem: Stem = "standard",
    width: int | None = None,
    dropout: float = 0.0,
    options: Mapping[str, Any] = NO_OPTIONS,
    image_size: int | None = None,
    other_sizes: Sizes = (),
) -> Backbone:
    """Build a backbone with random weights.

    Args:
        name: one of ``names()``. ``resnet8`` and ``resnet20`` are the CIFAR networks of He et al. (arXiv 1512.03385,
            section 4.2): three stages of 1 and 3 basic blocks. ``wrn45-2`` is a wide ResNet of 45 convolutions and 128
            features, made for the stem "small". ``convnet`` is the four-layer network of this project's seed study,
            ``autoencoder`` the encoder of G-SimCLR's (arXiv 2009.12007). ``timm/NAME`` is timm's;
            other names are torchvision's.
        stem: see the module's docstring; only ResNets have a choice, the others take "standard" only.
        width: channels of the first stage of resnet8 and resnet20 (None: 16); other backbones have one width.
        dropout: probability of dropout after each ReLU of the convnet; other backbones have none.
        options: of a network of timm, for ``timm.create_model``, such as ``{"patch_size": 4, "drop_path_rate": 0.1}``.
        image_size: pixels a side (None: 224). Transformers are made for it; others are checked to take it.
        other_sizes: of all images; where there are others, a transformer of timm is made for all, if it can be.

    Returns:
        A module with ``.dim``, the number of features; built-in ones are a ``ConvolutionalBackbone``.

    Raises:
        ConfigError: there is no such name, or the backbone does not have the option or take the size.
    """
    sizes = {*other_sizes, *([] if image_size is None else [image_size])}
    check(name, stem=stem, width=width, dropout=dropout, options=options, image_sizes=sizes)
    if name in catalogue.BUILT_IN:
        from ssl_dist.backbones import built_in

        return built_in.build(name, stem=stem, width=width, dropout=dropout)
    if name.startswith(catalogue.TIMM):
        from ssl_dist.backbones import timm_models

        return timm_models.build(name, image_size, other_sizes, options)
    from ssl_dist.backbones import torchvision_models  # takes seconds to import

    return torchvision_models.build(name, stem=stem, image_size=image_size)


def expect_features(name: str, image_sizes: Sizes, options: Mapping[str, Any]) -> None:
    """Build a network of timm without values, and send images of each size through it; the others are checked already.

    Raises:
        ConfigError: it does not have an option, does not take a size, or gives no vector of features for an image.
    """
    if name.startswith(catalogue.TIMM) and image_sizes:
        from ssl_dist.backbones import timm_models

        timm_models.expect_features(name, image_sizes, options)


def input_of(name: str) -> MeanStd:
    """Return the normalisation of the images that torchvision's or timm's weights of this network learned from."""
    if name.startswith(catalogue.TIMM):
        from ssl_dist.backbones import timm_models

        return timm_models.input_of(name)
    return KNOWN_INPUTS[catalogue.imagenet_input(name)]


def classes_of(name: str) -> int:
    """Return the number of classes of torchvision's or timm's weights of this network; 0: they have none."""
    if name.startswith(catalogue.TIMM):
        from ssl_dist.backbones import timm_models

        return timm_models.num_classes(name)
    return 0 if name in catalogue.BUILT_IN else catalogue.IMAGENET_CLASSES
