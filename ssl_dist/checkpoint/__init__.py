"""Checkpoints that do not know how many workers wrote them.

    RUN/checkpoints/step-00000500/
      model.safetensors       parameters and buffers, whole
      optimizer.safetensors   optimizer state, whole, by "parameter/key"
      checkpoint.json         step, config, the probe's score, checksums of the two files and of itself

Written aside, fsynced, renamed: a directory of that name is complete or damaged, never half written. The newest that
verifies is the one to resume. No pickle. Kept are the newest, and the best by the online probe. Where the config names
a mirror (see ``mirror.py``), each is copied there, and a run that has lost its own goes on from there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import xxhash
from safetensors.torch import load_file, save_file

from ssl_dist.checkpoint.mirror import Mirror
from ssl_dist.checkpoint.state import State
from ssl_dist.config import RunConfig
from ssl_dist.errors import CheckpointError, RunError
from ssl_dist.settings import CheckpointConfig
from ssl_dist.uris import join_uri

FOLDER = "checkpoints"
_FILES = ("model", "optimizer")
MODEL = "model.safetensors"
_META = "checkpoint.json"

log = logging.getLogger(__name__)


class Checkpoint(NamedTuple):
    """A verified checkpoint: ``step`` steps are done; ``score`` is the online probe's value there, if it was taken."""

    path: Path
    step: int
    config: RunConfig
    score: float | None

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


class Writer:
    """Writes a run's checkpoints behind the step: one at a time, in a thread, from a snapshot of the tensors."""

    def __init__(self, run: Path, config: RunConfig) -> None:
        self._run, self._config, self._mirror = run, config, mirror_of(run, config)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._last: Future[Path] | None = None
        self._snapshot: State | None = None
        for torn in (run / FOLDER).glob(".step-*.tmp"):  # a kill left it
            shutil.rmtree(torn, ignore_errors=True)

    def write(self, step: int, take: Callable[[State | None], State], score: float | None) -> None:
        """Take a snapshot and begin to write it; waits for the one before.

        Args:
            take: returns the tensors, in the memory of an earlier snapshot where it is given one.
        """
        if self._last:
            wait([self._last])
        self._snapshot = take(self._snapshot)
        if not self.failed:
            self._last = self._thread.submit(self._save, step, self._snapshot, score)

    def _save(self, step: int, state: State, score: float | None) -> Path:
        path = save(self._run, step, self._config, state, score)
        if self._mirror:
            _copy_to(self._mirror, path, self._config.checkpoint)
        return path

    @property
    def failed(self) -> bool:
        """Could the last one not be written, as far as is known?"""
        return self._last is not None and self._last.done() and self._last.exception() is not None

    def wait(self) -> None:
        """Until the last one is written.

        Raises:
            RunError: it could not be.
        """
        if self._last:
            self._last.result()

    def close(self) -> None:
        """Wait until all is written, or has failed."""
        self._thread.shutdown()


def save(run: Path, step: int, config: RunConfig, state: State, score: float | None = None) -> Path:
    """Write a checkpoint (one process calls) and delete the others of its run, but the newest ``keep`` and the best
    ``keep_best`` by score, of ``config.checkpoint``.

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
            checksums[file.name] = checksum(file)
        meta: dict[str, Any] = {"step": step, "score": score, "config": config.model_dump(mode="json")}
        meta["xxh3"] = checksums
        (aside / _META).write_text(json.dumps({**meta, "self": _seal(meta)}, indent=1), encoding="utf-8")
        _fsync(aside / _META)
        _fsync(aside)
        shutil.rmtree(final, ignore_errors=True)  # damaged, or it would not be written again
        aside.rename(final)
        _fsync(final.parent)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise RunError(f"checkpoint {final} cannot be written ({error}): older checkpoints are untouched") from None
    for name in _superfluous(final.name, {path.name: _score(path) for path in found(run)}, config.checkpoint):
        shutil.rmtree(final.with_name(name), ignore_errors=True)
    return final


def _copy_to(mirror: Mirror, path: Path, kept: CheckpointConfig) -> None:
    """A run does not end because its mirror cannot be reached: the next checkpoint is copied again."""
    try:
        mirror.put(path, last=_META)
        scores = {name: _score_in(mirror.read(name, _META)) for name in mirror.names()}
        for name in _superfluous(path.name, scores, kept):
            mirror.delete(name)
    except OSError as error:
        log.warning("%s could not be copied to %s (%s)", path, mirror.uri, error)


def _superfluous(last: str, scores: Mapping[str, float | None], kept: CheckpointConfig) -> list[str]:
    """Names of checkpoints, in any order with their scores, that are not to be kept beside the ``last`` written."""
    beyond = [name for name in scores if name > last]  # damaged, or the run would not have gone back
    names = sorted((name for name in scores if name <= last), reverse=True)
    ranked = sorted(((score, name) for name in names if (score := scores[name]) is not None), reverse=True)
    best = [name for _, name in ranked[: kept.keep_best]]
    return beyond + [name for name in names[kept.keep :] if name not in best]


def _score(path: Path) -> float | None:
    """As its file says; damage there loses a best one, not the newest."""
    try:
        return _score_in((path / _META).read_bytes())
    except OSError:
        return None


def _score_in(meta: bytes) -> float | None:
    try:
        score = json.loads(meta)["score"]
    except (ValueError, KeyError, TypeError):
        return None
    return score if isinstance(score, float) else None


def adopt(run: Path, source: Path) -> Checkpoint:
    """Let a run that has no checkpoint go on from a copy of another run's (one process calls).

    Raises:
        CheckpointError: the other is damaged.
        RunError: it cannot be copied.
    """
    whole = verify(source)
    final = path_of(run, whole.step)
    aside = final.with_name(f".{final.name}.tmp")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(source, aside)
        aside.rename(final)
    except OSError as error:
        raise RunError(f"checkpoint {source} cannot be copied to {final} ({error})") from None
    return whole._replace(path=final)


def mirror_of(run: Path, config: RunConfig) -> Mirror | None:
    """Where copies of a run's checkpoints lie, if anywhere.

    Raises:
        ConfigError: ``config.checkpoint.mirror`` is not a URI.
    """
    uri = config.checkpoint.mirror
    return Mirror(join_uri(uri, run.name)) if uri else None


def newest(run: Path, mirror: Mirror | None = None) -> Checkpoint | None:
    """The newest checkpoint of a run that verifies, None where it has none; damaged ones are named in the log. From
    the mirror where the run's directory lacks it or has it damaged.

    Raises:
        CheckpointError: there are some, and none of them verifies: a run does not start over in silence.
        RunError: the mirror cannot be read.
    """
    try:
        names = {path.name for path in found(run)} | set(mirror.names() if mirror else ())
    except OSError as error:
        raise RunError(f"{mirror.uri if mirror else run} cannot be read ({error})") from None
    there = sorted(names, reverse=True)
    for name in there:
        try:
            return fetch(run, name, mirror)
        except CheckpointError as error:
            log.warning("%s: passed over", error)
    if there:
        raise CheckpointError(
            f"none of the {len(there)} checkpoints in {run / FOLDER} verifies, newest {there[0]}: restore one,"
            " or delete them to start the run over"
        )
    return None


def fetch(run: Path, name: str, mirror: Mirror | None) -> Checkpoint:
    """A checkpoint of a run by its directory's name, brought from the mirror if it must be.

    Raises:
        CheckpointError: it is damaged, here and there.
    """
    here = run / FOLDER / name
    try:
        return verify(here)
    except CheckpointError:
        if mirror is None:
            raise
    try:
        with mirror.fetched(name, here.parent) as copy:
            verify(copy)
            shutil.rmtree(here, ignore_errors=True)
            with contextlib.suppress(OSError):  # another worker of this machine was first
                copy.rename(here)
    except OSError as error:
        raise CheckpointError(f"{mirror.uri}/{name} cannot be read ({error})") from None
    return verify(here)


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
            if checksum(file) != meta["xxh3"][file.name]:
                raise CheckpointError(f"{file} differs from its checksum")
        config = RunConfig.from_tree(meta["config"], str(path / _META))
        return Checkpoint(path, meta["step"], config, meta.get("score"))  # older ones have none
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a whole checkpoint ({error!r})") from None


def describe(path: Path) -> dict[str, Any]:
    """``name``, ``step``, ``score``, ``bytes``, ``written`` (seconds since 1970); nothing is checked."""
    size = sum(file.stat().st_size for file in path.iterdir())
    step = int(path.name.rpartition("-")[2])
    return {"name": path.name, "step": step, "score": _score(path), "bytes": size, "written": path.stat().st_mtime}


def found(run: Path) -> list[Path]:
    """Checkpoint directories of a run, whole or not, newest first."""
    return sorted((run / FOLDER).glob("step-*"), reverse=True)


def checksum(file: Path) -> str:
    """xxh3-64 of a file's bytes, hexadecimal."""
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
