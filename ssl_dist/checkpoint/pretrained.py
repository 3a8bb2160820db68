"""Pretrained weights (``backbone.weights``) that a run's backbone starts from."""

from __future__ import annotations

import logging
from pathlib import Path

import safetensors
from safetensors.torch import load_file
from torch import Tensor

from ssl_dist.checkpoint.checkpoints import Checkpoints
from ssl_dist.checkpoint.files import MODEL, checksum
from ssl_dist.config import ResolvedConfig
from ssl_dist.errors import ConfigError

_BACKBONE = "backbone."  # prefix of the backbone's tensors in a checkpoint
_BODY = "body."  # prefix, within the backbone, of the tensors of a torchvision network

log = logging.getLogger(__name__)


def resolve(config: ResolvedConfig) -> ResolvedConfig:
    """Replace ``backbone.weights`` by the path of one file, and add its digest to the facts unless it is there.

    Raises:
        ConfigError: there are no such weights, or they are of another backbone.
    """
    backbone = config.backbone
    if backbone.weights is None or config.facts.weights_digest is not None:
        return config
    file = _file(Path(backbone.weights).absolute())
    facts = config.facts.model_copy(update={"weights_digest": checksum(file)})
    backbone = backbone.model_copy(update={"weights": str(file)})
    resolved = config.model_copy(update={"backbone": backbone, "facts": facts})
    read(resolved)
    return resolved


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
    file = _file(Path(backbone.weights))
    try:
        tensors, digest = load_file(file), checksum(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError(f"backbone.weights {file} cannot be read as safetensors ({error})") from None
    if config.facts.weights_digest not in (None, digest):
        raise ConfigError(f"backbone.weights {file} has changed since this run was begun: start a new run")
    wanted = config.initial_backbone().state_dict()
    prefix = "" if any(name.startswith(_BACKBONE) for name in tensors) else _BODY
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


def _file(path: Path) -> Path:
    """Return the model file of a run's newest checkpoint, or of a checkpoint; ``path`` itself if it is a file."""
    if Checkpoints(path).folder.is_dir():
        found = Checkpoints(path).newest()
        if found is None:
            raise ConfigError(f"backbone.weights {path} holds no checkpoint that verifies")
        path = found.path
    file = path / MODEL if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(f"backbone.weights {path}: give a run's directory, a checkpoint's, or a .safetensors file")
    return file
