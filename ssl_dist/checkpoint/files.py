"""The files of one checkpoint: how they are written, checked and read.

    step-00000500/
      model.safetensors       parameters and buffers; its metadata name the backbone's normalisation, if it has one
      optimizer.safetensors   optimizer state, by "parameter/key"
      checkpoint.json         step, config, the online probe's score, validation losses so far, checksums of the two
                              files and of itself

The directory is renamed into place when all files are on the disk: it is complete or damaged, never half written.
No file is a pickle.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import safetensors
import xxhash

from ssl_dist.config import ResolvedConfig
from ssl_dist.errors import CheckpointError
from ssl_dist.files import replacing

if TYPE_CHECKING:
    from torch import Tensor

MODEL = "model.safetensors"
META = "checkpoint.json"
NORMALISATION = "normalisation"  # key of a model's metadata, and of the setting in its config
_TENSORS = (MODEL, "optimizer.safetensors")


class State(NamedTuple):
    """Whole tensors of a checkpoint, independent of the number of workers.

    Attributes:
        model: parameters and buffers by name.
        optimizer: optimizer state by ``parameter name/key``.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]


class Checkpoint(NamedTuple):
    """A verified checkpoint.

    Attributes:
        path: its directory.
        step: number of steps done.
        config: the run's config.
        score: the online probe's value at this step; None where it was not measured.
        losses: the validation losses so far, on which the learning rate and the run's end may depend.
    """

    path: Path
    step: int
    config: ResolvedConfig
    score: float | None
    losses: tuple[float, ...] = ()

    @property
    def model_file(self) -> Path:
        return self.path / MODEL

    def load(self) -> State:
        """Read the tensors, on the CPU.

        Raises:
            CheckpointError: the files cannot be read.
        """
        from safetensors.torch import load_file

        try:
            model, optimizer = (load_file(self.path / name) for name in _TENSORS)
        except (OSError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{self.path} cannot be read ({error})") from None
        return State(model, optimizer)


def write(
    path: Path, step: int, config: ResolvedConfig, state: State, score: float | None, losses: Sequence[float] = ()
) -> None:
    """Write the directory of a checkpoint in place of an older one.

    Raises:
        OSError, SafetensorError: it cannot be written, and the older one is as it was.
    """
    with replacing(path, durable=True) as aside:
        aside.mkdir(parents=True)
        meta: dict[str, Any] = {"step": step, "score": score, "config": config.model_dump(mode="json"), "xxh3": {}}
        if losses:
            meta["validation_losses"] = list(losses)
        for name, tensors in zip(_TENSORS, state, strict=True):
            save_tensors(tensors, aside / name, _metadata(config) if name == MODEL else None)
            meta["xxh3"][name] = checksum(aside / name)
        (aside / META).write_text(json.dumps({**meta, "self": _digest(meta)}, indent=1), encoding="utf-8")


def save_tensors(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a file of safetensors that others may read as the umask says; the library lets only the owner read it."""
    from safetensors.torch import save_file

    file.touch()
    mode = file.stat().st_mode
    save_file(tensors, file, metadata)
    file.chmod(stat.S_IMODE(mode))


def _metadata(config: ResolvedConfig) -> dict[str, str] | None:
    """Return the metadata of a model's file: what its weights need to be used, wherever the file goes."""
    given = config.model_dump(mode="json")["backbone"][NORMALISATION]
    return {NORMALISATION: json.dumps(given)} if given not in (None, "none") else None


def verify(path: Path) -> Checkpoint:
    """Compare every byte of a checkpoint with its checksums.

    Raises:
        CheckpointError: a file is missing or differs from its checksum.
    """
    try:
        meta = json.loads((path / META).read_text(encoding="utf-8"))
        if meta.pop("self") != _digest(meta):
            raise CheckpointError(f"{path / META} differs from its checksum")
        for name in _TENSORS:
            if checksum(path / name) != meta["xxh3"][name]:
                raise CheckpointError(f"{path / name} differs from its checksum")
        config = ResolvedConfig.from_tree(meta["config"], str(path / META))
        losses = tuple(meta.get("validation_losses", ()))
        return Checkpoint(path, meta["step"], config, meta.get("score"), losses)  # the first checkpoints had no score
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a whole checkpoint ({error!r})") from None


def score_in(meta: bytes) -> float | None:
    """Return the score that a ``checkpoint.json`` names, without verifying it; None where it names none."""
    try:
        score = json.loads(meta)["score"]
    except (ValueError, KeyError, TypeError):
        return None
    return score if isinstance(score, float) else None


def checksum(file: Path) -> str:
    """Return the xxh3-64 checksum of a file's bytes, in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, xxhash.xxh3_64).hexdigest()


def _digest(meta: dict[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(meta, sort_keys=True).encode())
