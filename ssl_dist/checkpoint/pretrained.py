"""Weights of a backbone that was trained before, for a run to start from (``backbone.weights``)."""

from __future__ import annotations

import logging
from pathlib import Path

import safetensors
from safetensors.torch import load_file
from torch import Tensor

from ssl_dist.checkpoint.checkpoints import Checkpoints
from ssl_dist.checkpoint.files import MODEL, checksum
from ssl_dist.config import RunConfig
from ssl_dist.errors import ConfigError
from ssl_dist.settings import BackboneConfig

_OURS = "backbone."  # what a checkpoint's names of the backbone's tensors begin with
_BODY = "body."  # within it, what a torchvision network has under its own names

log = logging.getLogger(__name__)


def resolve(config: RunConfig) -> BackboneConfig:
    """The backbone's config with ``weights`` as the path of one file, and its digest; as it is where it has both.

    Raises:
        ConfigError: no such weights, or not of this backbone.
    """
    backbone = config.backbone
    if backbone.weights is None or backbone.weights_digest is not None:
        return backbone
    file = _file(Path(backbone.weights).absolute())
    backbone = backbone.model_copy(update={"weights": str(file), "weights_digest": checksum(file)})
    read(config.model_copy(update={"backbone": backbone}))
    return backbone


def read(config: RunConfig) -> dict[str, Tensor]:
    """The tensors that ``RunConfig.initial_method`` takes; none where the config names no weights.

    A file's tensors are a checkpoint's (names with ``backbone.`` before them; heads are left out), or those of
    torchvision's network under its own names (the classifier is left out).

    Raises:
        ConfigError: the file cannot be read, is another than the run was begun with, or has other tensors.
    """
    backbone = config.backbone
    if backbone.weights is None:
        return {}
    file = _file(Path(backbone.weights))
    try:
        tensors, digest = load_file(file), checksum(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError(f"backbone.weights {file} cannot be read as safetensors ({error})") from None
    if backbone.weights_digest not in (None, digest):
        raise ConfigError(f"backbone.weights {file} has changed since this run was begun: begin another")
    wanted = config.initial_backbone().state_dict()
    ours = any(name.startswith(_OURS) for name in tensors)
    named = {name.removeprefix(_OURS) if ours else f"{_BODY}{name}": tensor for name, tensor in tensors.items()}
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


def _file(path: Path) -> Path:
    """Of a run its newest checkpoint, of a checkpoint its model, else the file itself."""
    if Checkpoints(path).folder.is_dir():
        found = Checkpoints(path).newest()
        if found is None:
            raise ConfigError(f"backbone.weights {path} holds no checkpoint that verifies")
        path = found.path
    file = path / MODEL if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(f"backbone.weights {path}: it is a run's directory, a checkpoint's, or a .safetensors file")
    return file
