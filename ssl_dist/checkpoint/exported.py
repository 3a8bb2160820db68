"""The folder of an exported encoder, as ``ssl_dist.export`` writes it: what it says, and the tensors in it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pydantic
import safetensors

from ssl_dist.backbones.catalogue import TIMM
from ssl_dist.checkpoint.public_names import TORCHVISION_VIT_AND_HEAD, renamed
from ssl_dist.errors import CheckpointError, RunError
from ssl_dist.files import to_json, write_text
from ssl_dist.settings import BackboneConfig

if TYPE_CHECKING:
    from torch import Tensor

FACTS, WEIGHTS, CARD = "encoder.json", "model.safetensors", "README.md"
_OURS = ("safetensors", "torchvision")  # formats whose weights have a backbone's own names
_BODY = "body."  # prefix of the tensors' names within a backbone
_HEAD = "head."  # prefix of those behind it, in the format safetensors
_SELF = "self"  # key of the digest of all that encoder.json says


class ExportedEncoder(NamedTuple):
    """The backbone of an exported encoder, and what stands behind it.

    Attributes:
        backbone: settings of the backbone.
        tensors: by the backbone's names; those of torchvision's classifier are among them, if it was exported.
        image_size: pixels a side of its images.
        together: images of a forward pass.
        part: which part of the run's network was exported.
        step: steps of the run; None where an earlier version has exported it.
    """

    backbone: BackboneConfig
    tensors: dict[str, Tensor]
    image_size: int
    together: int
    part: str
    step: int | None


class _Facts(pydantic.BaseModel):
    """Part of encoder.json that loading the encoder needs."""

    format: str
    part: Literal["backbone", "head", "classifier"] = "backbone"
    network: BackboneConfig
    image_size: int = pydantic.Field(ge=1, strict=True)
    together: int = pydantic.Field(ge=1, strict=True)
    step: int | None = pydantic.Field(None, ge=0, strict=True)
    sha256: dict[str, str]

    @property
    def of_timm_by_other_names(self) -> bool:
        return self.format == "torchvision" and self.network.name.startswith(TIMM)


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Write encoder.json, with a digest of its own content."""
    plain = json.loads(to_json(facts))
    write_text(folder / FACTS, json.dumps({**plain, _SELF: _digest(plain)}, indent=1) + "\n")


def is_exported(path: Path) -> bool:
    """Return whether a path is the folder of an exported encoder."""
    return (path / FACTS).is_file()


def read_exported(folder: Path) -> ExportedEncoder:
    """Read an exported folder; every byte of the weights and of encoder.json is compared with its checksum.

    Raises:
        RunError: its format is one that only the format's own library loads.
        CheckpointError: it is damaged.
    """
    from safetensors.torch import load_file

    try:
        content: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        if content.pop(_SELF) != _digest(content):
            raise CheckpointError(f"{folder / FACTS} differs from its checksum")
        facts = _Facts.model_validate(content)
        if facts.format not in _OURS:
            raise RunError(f"{folder} has the format {facts.format}, which its own library loads: see its {CARD}")
        if sha256(folder / WEIGHTS) != facts.sha256[WEIGHTS]:
            raise CheckpointError(f"{folder / WEIGHTS} differs from its checksum")
        tensors = load_file(folder / WEIGHTS)
        if facts.format == "safetensors" and facts.part != "backbone":
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(_HEAD)}
        else:
            others = TORCHVISION_VIT_AND_HEAD if facts.of_timm_by_other_names else ()
            tensors = {f"{_BODY}{renamed(name, others)}": tensor for name, tensor in tensors.items()}
        return ExportedEncoder(facts.network, tensors, facts.image_size, facts.together, facts.part, facts.step)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{folder} is not a whole exported encoder ({error!r})") from None


def sha256(file: Path) -> str:
    """Return the hexadecimal digest of a file."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
