"""Checkpoints that do not know how many workers wrote them.

    RUN/checkpoints/step-00000500/
      model.safetensors       parameters and buffers, whole
      optimizer.safetensors   optimizer state, whole, by "parameter/key"
      checkpoint.json         step, config, checksums of the two files and of itself

Written aside, fsynced, renamed: a directory of that name is complete or damaged, never half written. The newest that
verifies is the one to resume. No pickle.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import xxhash
from safetensors.torch import load_file, save_file

from ssl_dist.config import RunConfig
from ssl_dist.engine import State
from ssl_dist.errors import CheckpointError, RunError

FOLDER = "checkpoints"
_FILES = ("model", "optimizer")
_META = "checkpoint.json"

log = logging.getLogger(__name__)


class Checkpoint(NamedTuple):
    """A verified checkpoint: ``step`` steps are done."""

    path: Path
    step: int
    config: RunConfig

    def load(self) -> State:
        """Tensors on the CPU.

        Raises:
            CheckpointError: the files cannot be read.
        """
        try:
            model, optimizer = (load_file(self.path / f"{name}.safetensors") for name in _FILES)
        except (OSError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{self.path} cannot be read ({error})") from None
        return State(model, optimizer)


def path_of(run: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` steps lies."""
    return run / FOLDER / f"step-{step:08d}"


def save(run: Path, step: int, config: RunConfig, state: State, keep: int) -> Path:
    """Write a checkpoint (one process calls) and delete all but the newest ``keep`` of its run.

    Raises:
        RunError: it cannot be written; older checkpoints are as they were.
    """
    final = path_of(run, step)
    aside = final.with_name(f".{final.name}.tmp")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        checksums = {}
        for name, tensors in zip(_FILES, state, strict=True):
            file = aside / f"{name}.safetensors"
            save_file(tensors, file)
            _fsync(file)
            checksums[file.name] = _checksum(file)
        meta: dict[str, Any] = {"step": step, "config": config.model_dump(mode="json"), "xxh3": checksums}
        (aside / _META).write_text(json.dumps({**meta, "self": _seal(meta)}, indent=1), encoding="utf-8")
        _fsync(aside / _META)
        _fsync(aside)
        shutil.rmtree(final, ignore_errors=True)  # damaged, or it would not be written again
        aside.rename(final)
        _fsync(final.parent)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise RunError(f"checkpoint {final} cannot be written ({error}): older checkpoints are untouched") from None
    found = _found(run)
    beyond = [path for path in found if path.name > final.name]  # damaged, or the run would not have gone back
    for old in beyond + found[len(beyond) :][keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def adopt(run: Path, source: Path) -> Checkpoint:
    """Let a run that has no checkpoint go on from a copy of another run's (one process calls).

    Raises:
        CheckpointError: the other is damaged.
        RunError: it cannot be copied.
    """
    found = verify(source)
    final = path_of(run, found.step)
    aside = final.with_name(f".{final.name}.tmp")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(source, aside)
        aside.rename(final)
    except OSError as error:
        raise RunError(f"checkpoint {source} cannot be copied to {final} ({error})") from None
    return Checkpoint(final, found.step, found.config)


def newest(run: Path) -> Checkpoint | None:
    """The newest checkpoint of a run that verifies, None where it has none; damaged ones are named in the log.

    Raises:
        CheckpointError: there are some, and none of them verifies: a run does not start over in silence.
    """
    found = _found(run)
    for path in found:
        try:
            return verify(path)
        except CheckpointError as error:
            log.warning("%s: passed over", error)
    if found:
        raise CheckpointError(
            f"none of the {len(found)} checkpoints in {run / FOLDER} verifies, newest {found[0].name}: restore one,"
            " or delete them to start the run over"
        )
    return None


def verify(path: Path) -> Checkpoint:
    """Check every byte.

    Raises:
        CheckpointError: something is missing or differs from its checksum.
    """
    try:
        meta = json.loads((path / _META).read_text(encoding="utf-8"))
        seal = meta.pop("self")
        if seal != _seal(meta):
            raise CheckpointError(f"{path / _META} differs from its checksum")
        for name in _FILES:
            file = path / f"{name}.safetensors"
            if _checksum(file) != meta["xxh3"][file.name]:
                raise CheckpointError(f"{file} differs from its checksum")
        return Checkpoint(path, meta["step"], RunConfig.from_tree(meta["config"], str(path / _META)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a whole checkpoint ({error!r})") from None


def _found(run: Path) -> list[Path]:
    """Checkpoint directories, newest first."""
    return sorted((run / FOLDER).glob("step-*"), reverse=True)


def _checksum(file: Path) -> str:
    digest = xxhash.xxh3_64()
    with file.open("rb") as content:
        while block := content.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def _seal(meta: dict[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(meta, sort_keys=True).encode())


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
