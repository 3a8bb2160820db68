"""Pretrained weights (``backbone.weights``) that a run's backbone starts from."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors

from ssl_dist.backbones import classes_of, input_of
from ssl_dist.checkpoint import beside
from ssl_dist.checkpoint.files import META, MODEL, NORMALISATION, checksum
from ssl_dist.checkpoint.locating import locate
from ssl_dist.checkpoint.public_layouts import DATA_PARALLEL, NETWORK, OURS
from ssl_dist.config import ResolvedConfig
from ssl_dist.errors import ConfigError, RunError
from ssl_dist.settings import BackboneConfig

if TYPE_CHECKING:
    from torch import Tensor

    from ssl_dist.checkpoint.matching import Matching
    from ssl_dist.checkpoint.torch_files import Tables

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
    matching = _matching(file, resolved)
    matching.tensors()
    if backbone.normalisation is not None:
        return resolved
    tree = resolved.model_dump()
    tree["backbone"][NORMALISATION] = _normalisation(file, matching)
    return ResolvedConfig.from_tree(tree, str(file))


def read(config: ResolvedConfig) -> dict[str, Tensor]:
    """Read the tensors that ``initial_method`` puts into the backbone; none where the config names no weights.

    The file is a run's checkpoint, or one of other libraries or of methods' authors, see ``public_layouts``.

    Raises:
        ConfigError: the file cannot be read, has changed since the run began, or has tensors of another backbone.
    """
    backbone = config.backbone
    if backbone.weights is None:
        return {}
    file = _file(backbone)
    if config.facts.weights_digest not in (None, checksum(file)):
        raise ConfigError(f"backbone.weights {file} has changed since this run was begun: start a new run")
    return _matching(file, config).tensors()


def _matching(file: Path, config: ResolvedConfig) -> Matching:
    from ssl_dist.checkpoint.matching import Matching

    found = Matching.of(
        f"backbone.weights {file}",
        _tables(file),
        config.initial_backbone(),
        config.backbone,
        max(config.view_sizes, default=None),
    )
    return found._replace(num_heads=beside.num_heads(file))


def _tables(file: Path) -> Tables:
    """Read a file of safetensors or of ``torch.save``, which its first bytes tell apart; nothing is unpickled.

    Raises:
        ConfigError: it is neither, it is damaged, or it has what is not read.
    """
    from safetensors.torch import load_file

    from ssl_dist.checkpoint import torch_files

    try:
        if torch_files.is_one(file):
            return torch_files.read(file)
        return {"": load_file(file)}
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError(f"backbone.weights {file} cannot be read as safetensors ({error})") from None
    except Exception as error:  # a damaged file raises whatever its reader meets, and the message may be long
        reason = " ".join(str(error).split()) or repr(error)
        raise ConfigError(f"backbone.weights {file} cannot be read as a file of torch.save: {reason:.300}") from None


def _normalisation(file: Path, matching: Matching) -> Any:
    """Return the setting ``backbone.normalisation`` that belongs to weights; None: they learned from [0, 1] pixels.

    Raises:
        ConfigError: nothing tells it.
    """
    layout = matching.place.layout
    if layout.source == OURS:
        with safetensors.safe_open(file, "pt") as content:
            return json.loads((content.metadata() or {}).get(NORMALISATION, "null"))
    if layout.normalisation is not None:
        return _told(layout.normalisation, file, f"is a checkpoint of {layout.source}")
    if told := beside.normalisation(file):
        return _told(told.normalisation, file, f"stands beside {told.file}, which tells it")
    name, classifier = matching.settings.name, matching.network.classifier
    weight = matching.table.get(f"{layout.prefix}{classifier}.weight")
    known = layout.source == DATA_PARALLEL or (layout.source == NETWORK and matching.place.table == "")
    if known and weight is not None and len(weight) == classes_of(name):
        library = "timm" if name.startswith("timm/") else "torchvision"
        what = f"has the tensors of {library}'s {name.removeprefix('timm/')} with its {len(weight):,} classes"
        return _told(beside.as_setting(input_of(name)), file, what)
    raise ConfigError(
        f"backbone.weights {file}: nothing in it tells how the images were normalised that it learned from: set"
        " backbone.normalisation to imagenet (its mean and standard deviation), inception ([-1, 1]), none ([0, 1])"
        " or {mean: [R, G, B], std: [R, G, B]}"
    )


def _told(found: Any, file: Path, reason: str) -> Any:
    log.warning(
        "%s %s: backbone.normalisation is set to %s (if it learned from other pixels, set it to none, or to their mean"
        " and std)",
        *(file, reason, found),
    )
    return found


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
                raise RunError(f"{path}: give a run's directory, a checkpoint's, or a .safetensors or .pth file")
            return file
        return locate(path, backbone.checkpoint).model_file
    except RunError as error:
        raise ConfigError(f"backbone.weights: {error}") from None
