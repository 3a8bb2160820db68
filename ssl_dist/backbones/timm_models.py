"""Backbones from timm: its networks without their classifier, with random weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg

from ssl_dist.backbones.base import Backbone
from ssl_dist.backbones.catalogue import TIMM, MeanStd, Sizes
from ssl_dist.backbones.without_values import WithoutValues
from ssl_dist.errors import ConfigError

_TRIED = 2  # images: BatchNorm needs more than one


def build(name: str, image_size: int | None, other_sizes: Sizes, options: Mapping[str, Any]) -> Backbone:
    """Build the network ``name``, which begins with "timm/", for images of these sizes.

    Raises:
        ConfigError: the network does not have one of the options, or cannot be made with them.
    """
    arguments = arguments_of(name, image_size, other_sizes, options)
    try:
        network = timm.create_model(name.removeprefix(TIMM), **arguments)
    except Exception as error:  # each network has checks of its own
        raise ConfigError(_reason(name, arguments, error)) from None
    dim = getattr(network, "head_hidden_size", network.num_features)
    fixed = None if "dynamic_img_size" in arguments else arguments.get("img_size")
    return Backbone(network, dim, fixed, _configuration(name)["classifier"])


def arguments_of(name: str, image_size: int | None, other_sizes: Sizes, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``timm.create_model`` for a network that gives features of images of these sizes."""
    arguments: dict[str, Any] = {"num_classes": 0, **options}
    if image_size is not None and _configuration(name)["fixed_input_size"]:
        arguments["img_size"] = image_size
        if {*other_sizes} - {image_size}:
            arguments["dynamic_img_size"] = True
    return arguments


def _reason(name: str, arguments: Mapping[str, Any], error: Exception) -> str:
    """Say in one line why timm did not make a network."""
    reason = " ".join(str(error).split()) or repr(error)
    unknown = re.search(r"unexpected keyword argument(?:\(s\))?:? \[?'(\w+)'", reason)
    if unknown and unknown[1] == "dynamic_img_size":
        return f"backbone {name} takes images of one size: give all views one (augment.size_px)"
    if unknown:
        return f"backbone.options.{unknown[1]}: {name} has no such option"
    size = f" for images of {arguments['img_size']} px" if "img_size" in arguments else ""
    given = {key: value for key, value in arguments.items() if key not in ("num_classes", "img_size")}
    return f"backbone {name} cannot be made{size}{f' with options {given}' if given else ''}: {reason}"


def expect_features(name: str, sizes: Iterable[int], options: Mapping[str, Any]) -> None:
    """Send images of each size through the network, without values, as in training.

    Raises:
        ConfigError: it cannot be made, does not take a size, or gives no vector of features for each image.
    """
    *smaller, largest = sorted(set(sizes))
    with WithoutValues():
        backbone = build(name, largest, smaller, options).to("meta")  # also constants, which have values
    patch = getattr(getattr(backbone.body, "patch_embed", None), "patch_size", None) or 1
    step = patch if isinstance(patch, int) else patch[0]
    for size in (*smaller, largest):
        if size % step:  # timm would leave the rest of each image out
            raise ConfigError(f"backbone {name} takes images of a multiple of {step} px: these have {size}")
        try:
            shape = list(backbone.body(torch.empty(_TRIED, 3, size, size, device="meta")).shape)
        except Exception as error:  # as above
            reason = " ".join(str(error).split()) or repr(error)
            raise ConfigError(f"backbone {name} does not take images of {size} px: {reason}") from None
        if shape != [_TRIED, backbone.dim]:
            raise ConfigError(f"backbone {name} gives {shape} for {_TRIED} images, and not a vector of features each")


def input_of(name: str) -> MeanStd:
    """Return the normalisation of the images that timm's weights of this name learned from."""
    found = _configuration(name)
    return tuple(found["mean"]), tuple(found["std"])


def num_classes(name: str) -> int:
    """Return the number of classes of timm's weights of this name; 0: they have no classifier."""
    return int(_configuration(name)["num_classes"])


def _configuration(name: str) -> dict[str, Any]:
    """Return what timm says of a network and its weights; of the tag that the name has, or of its first one.

    Raises:
        ConfigError: timm has no such tag.
    """
    try:
        found = get_pretrained_cfg(name.removeprefix(TIMM))
    except RuntimeError as error:
        raise ConfigError(f"backbone {name}: {error}") from None
    known: dict[str, Any] = (found or timm.models.PretrainedCfg()).to_dict()
    return known
