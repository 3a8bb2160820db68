"""Pretrained weights (``backbone.weights``) that a run's backbone starts from."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors

from ssl_dist.backbones import imagenet_input
from ssl_dist.checkpoint.files import META, MODEL, NORMALISATION, checksum
from ssl_dist.checkpoint.locating import locate
from ssl_dist.config import ResolvedConfig
from ssl_dist.errors import ConfigError, RunError
from ssl_dist.settings import BackboneConfig

if TYPE_CHECKING:
    from torch import Tensor

_BACKBONE = "backbone."  # prefix of the backbone's tensors in a checkpoint
_BODY = "body."  # prefix, within the backbone, of the tensors of a torchvision network
_IMAGENET_CLASSES = 1000

log = logging.getLogger(__name__)


def resolve(config: ResolvedConfig) -> ResolvedConfig:
    """Replace ``backbone.weights`` by the path of one file, and find its digest and its normalisation of images.

    A config whose facts have the digest is returned as it is: its run began with what its settings say.

    Raises:
        ConfigError: there are no such weights, they are of another backbone, or nothing tells their normalisation.
    """
    backbone = config.backbone
    if backbone.weights is None or config.facts.weights_digest is not None:
        return config
    file = _file(backbone)
    facts = config.facts.model_copy(update={"weights_digest": checksum(file)})
    found = {"weights": str(file), "checkpoint": "newest"}
    resolved = config.model_copy(update={"backbone": backbone.model_copy(update=found), "facts": facts})
    read(resolved)
    if backbone.normalisation is not None:
        return resolved
    tree = resolved.model_dump()
    tree["backbone"][NORMALISATION] = _normalisation(file, resolved)
    return ResolvedConfig.from_tree(tree, str(file))


def _normalisation(file: Path, config: ResolvedConfig) -> Any:
    """Return the setting ``backbone.normalisation`` that belongs to weights; None: they learned from [0, 1] pixels.

    Raises:
        ConfigError: they are neither a run's nor torchvision's.
    """
    tensors = _tensors(file)
    if _is_checkpoint(tensors):
        with safetensors.safe_open(file, "pt") as content:
            return json.loads((content.metadata() or {}).get(NORMALISATION, "null"))
    name, classifier = config.backbone.name, config.initial_backbone().classifier
    weight = tensors.get(f"{classifier}.weight")
    if weight is None or len(weight) != _IMAGENET_CLASSES:
        raise ConfigError(
            f"backbone.weights {file}: nothing in it tells how the images were normalised that it learned from: set"
            " backbone.normalisation to imagenet (its mean and standard deviation), inception ([-1, 1]), none ([0, 1])"
            " or {mean: [R, G, B], std: [R, G, B]}"
        )
    found = imagenet_input(name)
    log.warning(
        "%s has the tensors of torchvision's %s with ImageNet's classes: backbone.normalisation is set to %s (if it"
        " learned from other pixels, set it to none, or to their mean and std)",
        *(file, name, found),
    )
    return found


def read(config: ResolvedConfig) -> dict[str, Tensor]:
    """Read the tensors that ``initial_method`` puts into the backbone; none where the config names no weights.

    The file is a checkpoint's model, of which the heads are left out, or has the names of the torchvision network, of
    which the classifier is left out.

    Raises:
        ConfigError: the file cannot be read, has changed since the run began, or has tensors of another backbone.
    """

    backbone = config.backbone
    if backbone.weights is None:
        return {}
    file = _file(backbone)
    tensors, digest = _tensors(file), checksum(file)
    if config.facts.weights_digest not in (None, digest):
        raise ConfigError(f"backbone.weights {file} has changed since this run was begun: start a new run")
    wanted = config.initial_backbone().state_dict()
    prefix = "" if _is_checkpoint(tensors) else _BODY
    named = {f"{prefix}{name.removeprefix(_BACKBONE)}": tensor for name, tensor in tensors.items()}
    for name, tensor in wanted.items():
        if name not in named or named[name].shape != tensor.shape:
            given = f"one of {list(named[name].shape)}" if name in named else "none"
            raise ConfigError(
                f"backbone.weights {file}: backbone {backbone.name} (stem {backbone.stem}) has a tensor {name} of"
                f" {list(tensor.shape)}, the file {given}: give weights of the same backbone"
            )
    if unused := sorted(named.keys() - wanted.keys()):
        log.info("backbone.weights %s: not used: %s", file, ", ".join(unused))
    return {name: named[name].to(tensor.dtype) for name, tensor in wanted.items()}


def _is_checkpoint(tensors: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(_BACKBONE) for name in tensors)


def _tensors(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError(f"backbone.weights {file} cannot be read as safetensors ({error})") from None
    return tensors


def _file(backbone: BackboneConfig) -> Path:
    """Return the file of ``weights``: itself, or the model's of the chosen checkpoint."""
    path = Path(backbone.weights or "").absolute()
    try:
        bare = path.is_dir() and not (path / META).exists() and (path / MODEL).is_file()
        if not path.is_dir() or bare:
            file = path / MODEL if bare else path
            if backbone.checkpoint != "newest":
                raise RunError(f"{path} is no run: backbone.checkpoint chooses among a run's checkpoints")
            if not file.is_file():
                raise RunError(f"{path}: give a run's directory, a checkpoint's, or a .safetensors file")
            return file
        return locate(path, backbone.checkpoint).model_file
    except RunError as error:
        raise ConfigError(f"backbone.weights: {error}") from None
