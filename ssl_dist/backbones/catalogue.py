"""Catalogue of the backbones: their names, options and image sizes, which are known without torch."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from ssl_dist.errors import ConfigError

Stem = Literal["standard", "small", "half"]
Sizes = Collection[int]  # pixels a side
MeanStd = tuple[tuple[float, ...], tuple[float, ...]]
"""(mean, standard deviation) of each of the three channels, for pixels in [0, 1]."""
KNOWN_INPUTS: dict[str, MeanStd] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # pixels in [-1, 1]
}

TIMM = "timm/"  # begins the names of timm's networks
NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})
_NOT_OPTIONS = {  # of timm.create_model, which are set by other means or have no meaning here
    **dict.fromkeys(("img_size", "dynamic_img_size"), "it follows the size of the views, augment.size_px"),
    **dict.fromkeys(("pretrained", "checkpoint_path", "cache_dir"), "backbone.weights names a file of weights"),
    **dict.fromkeys(("pretrained_cfg", "pretrained_cfg_overlay"), "backbone.normalisation is the input's"),
    **dict.fromkeys(("num_classes", "in_chans", "features_only"), "a backbone gives features of colour images"),
    **dict.fromkeys(("scriptable", "exportable", "no_jit"), "it changes no network"),
    **dict.fromkeys(("device", "dtype"), "the engine chooses it"),
}
BUILT_IN = ("convnet", "resnet8", "resnet20", "wrn45-2", "autoencoder")
STEM_STRIDES = {"standard": 4, "small": 1, "half": 2}
_STRIDES = {"convnet": 16, "autoencoder": 8, "resnet8": 4, "resnet20": 4, "wrn45-2": 8}  # behind the stem, if any
ONE_SIZE = ("vit", "maxvit")  # made for images of one size
IMAGENET_CLASSES = 1000  # of torchvision's weights
INCEPTIONS = ("googlenet", "inception_v3")
_MAXVIT_STEP = 224  # sides are halved five times, and the last map has windows of 7
# Smallest sides by the names' beginnings, from torchvision's ``min_size`` where that is more than 1. Swin and
# EfficientNetV2 take smaller images than it says (measured).
_SMALLEST = {
    **{"alexnet": 63, "convnext": 32, "densenet": 29, "googlenet": 15, "inception": 75},
    **{"squeezenet1_0": 21, "squeezenet1_1": 17, "vgg": 32},
}


def names() -> list[str]:
    """Return all backbones' names: built-in ones, then torchvision's."""
    return [*BUILT_IN, *torchvision_names()]


def with_map() -> list[str]:
    """Return the names for which ``build`` makes a ``ConvolutionalBackbone``."""
    return [*BUILT_IN]


def map_stride(name: str, stem: Stem) -> int:
    """Return the pixels between two places of the map, for one of ``with_map()``."""
    return _STRIDES[name] * (STEM_STRIDES[stem] if _has_stems(name) else 1)


@functools.cache
def torchvision_names() -> tuple[str, ...]:
    """Return the names of torchvision's classification networks, as its files register them, in their order."""
    found = importlib.util.find_spec("torchvision")
    assert found is not None, "torchvision is installed with this package"
    files = sorted(Path(str(found.origin)).parent.glob("models/*.py"))
    registered = re.compile(r'@register_model\((?:name="(\w+)")?\)\n(?:@.*\n|    .*\n|\)\n)*def (\w+)')
    pairs = [pair for file in files for pair in registered.findall(file.read_text(encoding="utf-8"))]
    return tuple(sorted(given or function for given, function in pairs))


@functools.cache
def timm_names() -> tuple[str, ...]:
    """Return the names of timm's networks, as its files register them.

    Raises:
        ConfigError: timm is not installed.
    """
    found = importlib.util.find_spec("timm")
    if found is None:
        raise ConfigError("networks of timm need timm: pip install 'ssl_dist[timm]'")
    files = Path(str(found.origin)).parent.glob("models/*.py")
    registered = re.compile(r"^@register_model\ndef (\w+)", re.MULTILINE)
    return tuple(sorted(name for file in files for name in registered.findall(file.read_text(encoding="utf-8"))))


def imagenet_input(name: str) -> str:
    """Return the normalisation, one of ``KNOWN_INPUTS``, of the images that torchvision's weights learned from.

    Source: torchvision's ``WeightsEnum.transforms``; with weights, its GoogLeNet and Inception v3 convert what these
    give to [-1, 1] (``transform_input``), since the weights were ported from TensorFlow.
    """
    return "inception" if name in INCEPTIONS else "imagenet"


def check(
    name: str,
    *,
    stem: Stem = "standard",
    width: int | None = None,
    dropout: float = 0.0,
    options: Mapping[str, Any] = NO_OPTIONS,
    image_sizes: Sizes = (),
) -> None:
    """Check the options of ``build``, for images of several sizes, without making weights.

    Which ``options`` and sizes a network of timm takes is known when it is built.

    Raises:
        ConfigError: ``build`` would refuse the options, or the backbone one of the sizes.
    """
    if name.startswith(TIMM):
        _check_timm(name, options)
    elif name not in names():
        raise ConfigError(
            f"backbone {name!r}: it is one of {', '.join(BUILT_IN)}, or the name of a classification model of"
            f" torchvision, or timm/NAME{_nearest(name, names())}"
        )
    elif options:
        raise ConfigError(f"backbone {name} has no options (given {', '.join(options)}): networks of timm have")
    if dropout and name != "convnet":
        raise ConfigError(f"backbone {name} has no dropout (given {dropout}): only convnet has")
    if width is not None and name not in ("resnet8", "resnet20"):
        raise ConfigError(f"backbone {name} has one width (given {width}): only resnet8 and resnet20 take another")
    if stem != "standard" and not _has_stems(name):
        raise ConfigError(f"backbone {name} has no stem to choose (given {stem!r}): ResNets have")
    if name not in BUILT_IN:
        _check_sizes(name, sorted(set(image_sizes)))


def _check_timm(name: str, options: Mapping[str, Any]) -> None:
    """Refuse a network that timm does not have, and what is no option of a network.

    Raises:
        ConfigError: it is so.
    """
    network, known = name.removeprefix(TIMM).partition(".")[0], timm_names()  # the rest is a tag, of certain weights
    if network not in known:
        raise ConfigError(f"backbone {name!r}: timm has no network {network}{_nearest(network, known, TIMM)}")
    for option in options:
        if option in _NOT_OPTIONS:
            raise ConfigError(f"backbone.options.{option} is not for you to set: {_NOT_OPTIONS[option]}")


def _nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def _has_stems(name: str) -> bool:
    return name.startswith(("resnet", "resnext", "wide_resnet", "wrn"))


def _check_sizes(name: str, sizes: list[int]) -> None:
    """Refuse sizes that a network of torchvision does not take."""
    if name.startswith(ONE_SIZE):
        step = _MAXVIT_STEP if name.startswith("maxvit") else int(name.rpartition("_")[2])
        if wrong := [size for size in sizes if size % step]:
            raise ConfigError(f"backbone {name} takes images of a multiple of {step} px: these have {wrong[0]}")
        if len(sizes) > 1:
            raise ConfigError(f"backbone {name} takes images of one size: these have {', '.join(map(str, sizes))} px")
    smallest = next((side for start, side in _SMALLEST.items() if name.startswith(start)), 1)
    if sizes and sizes[0] < smallest:
        raise ConfigError(f"backbone {name} takes images of {smallest} px or more: these have {sizes[0]}")
