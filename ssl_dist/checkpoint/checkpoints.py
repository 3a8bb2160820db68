"""All checkpoints of one run, in RUN/checkpoints and, where the run has one, in its mirror.

The newest checkpoints and those with the best online probe are kept. A run resumes from the newest that verifies.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors

from ssl_dist.checkpoint.files import META, Checkpoint, State, score_in, verify, write
from ssl_dist.checkpoint.mirror import Mirror
from ssl_dist.config import ResolvedConfig
from ssl_dist.errors import CheckpointError, RunError
from ssl_dist.files import replacing
from ssl_dist.settings import CheckpointChoice, CheckpointConfig
from ssl_dist.uris import join_uri

FOLDER = "checkpoints"

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run.

    Args:
        run: the run directory.
        mirror: holds copies; a checkpoint that is missing or damaged in the run directory is fetched from it.
    """

    def __init__(self, run: Path, mirror: Mirror | None = None) -> None:
        self.folder = run / FOLDER
        self.mirror = mirror

    @classmethod
    def from_config(cls, run: Path, config: ResolvedConfig) -> Checkpoints:
        """Return the checkpoints of a run, with the mirror that its config names.

        Raises:
            ConfigError: ``config.checkpoint.mirror`` is not a URI.
        """
        uri = config.checkpoint.mirror
        return cls(run, Mirror(join_uri(uri, run.name)) if uri else None)

    def path(self, step: int) -> Path:
        """Return the directory of the checkpoint after ``step`` steps."""
        return self.folder / f"step-{step:08d}"

    def list(self) -> Sequence[Path]:
        """Return the checkpoints' directories, whole or damaged, newest first."""
        return sorted(self.folder.glob("step-*"), reverse=True)

    def describe(self, *, verified: bool = False) -> Sequence[dict[str, Any]]:
        """Return a row for each checkpoint, newest first.

        Args:
            verified: check every byte, and say in ``state`` whether it is "whole" or "damaged: ...".

        Returns:
            ``name``, ``step``, ``score``, ``bytes``, ``written`` (seconds since 1970).
        """
        rows = []
        for path in self.list():
            row = {"name": path.name, "step": _step_of(path.name), "score": _score(path)}
            row["bytes"] = sum(file.stat().st_size for file in path.iterdir())
            row["written"] = path.stat().st_mtime
            if verified:
                try:
                    verify(path)
                    row["state"] = "whole"
                except CheckpointError as error:
                    row["state"] = f"damaged: {error}"
            rows.append(row)
        return rows

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint that verifies; None where there are none. Name damaged ones in the log.

        Raises:
            CheckpointError: there are some, and none verifies: a run does not start over in silence.
            RunError: the mirror cannot be read.
        """
        names = self._names()
        for name in sorted(names, reverse=True):
            try:
                return self.fetch(name)
            except CheckpointError as error:
                log.warning("%s: passed over", error)
        if names:
            raise CheckpointError(
                f"none of the {len(names)} checkpoints in {self.folder} verifies, newest {max(names)}: restore one,"
                " or delete them to start the run over"
            )
        return None

    def best(self) -> Checkpoint:
        """Return the checkpoint with the best online probe among those that verify; of equal ones, the newest.

        Raises:
            RunError: no checkpoint has a score, or the mirror cannot be read.
            CheckpointError: none that has one verifies.
        """
        scored = [(score, name) for name in self._names() if (score := self._score(name)) is not None]
        for _, name in sorted(scored, reverse=True):
            try:
                return self.fetch(name)
            except CheckpointError as error:
                log.warning("%s: passed over", error)
        if scored:
            raise CheckpointError(f"none of the {len(scored)} checkpoints with a score in {self._place} verifies")
        raise RunError(
            f"no checkpoint in {self._place} has the online probe's score, so none is the best: choose newest or a step"
        )

    def at(self, step: int) -> Checkpoint:
        """Return the checkpoint of a step.

        Raises:
            RunError: there is none, or the mirror cannot be read.
            CheckpointError: it is damaged.
        """
        name, names = self.path(step).name, self._names()
        if name not in names:
            there = ", ".join(str(_step_of(name)) for name in sorted(names, reverse=True)) or "none"
            raise RunError(f"{self._place} has no checkpoint of step {step}; the steps are: {there}")
        return self.fetch(name)

    def choose(self, choice: CheckpointChoice) -> Checkpoint:
        """Return the checkpoint that a person names: "newest", "best" or a step.

        Raises:
            RunError, CheckpointError: see ``newest``, ``best`` and ``at``; there is none.
        """
        if isinstance(choice, int):
            return self.at(choice)
        found = self.best() if choice == "best" else self.newest()
        if found is None:
            raise RunError(f"{self._place} holds no checkpoint: give a run's directory, or wait for one")
        return found

    @property
    def _place(self) -> str:
        """Where the checkpoints are, for messages."""
        return self.mirror.uri if self.mirror and not self.folder.exists() else str(self.folder)

    def _names(self) -> set[str]:
        """Return the names of all checkpoints, whole or damaged, in the run directory and in the mirror."""
        try:
            return {path.name for path in self.list()} | set(self.mirror.names() if self.mirror else ())
        except OSError as error:
            raise RunError(f"{self.mirror.uri if self.mirror else self.folder} cannot be read ({error})") from None

    def _score(self, name: str) -> float | None:
        """Return the score of the checkpoint of this name, here or in the mirror."""
        score = _score(self.folder / name)
        if score is None and self.mirror:
            with contextlib.suppress(OSError):
                return score_in(self.mirror.read(name, META))
        return score

    def fetch(self, name: str) -> Checkpoint:
        """Return the checkpoint of this name, copied from the mirror where the run directory has it not whole.

        Raises:
            CheckpointError: it is missing or damaged in both.
        """
        here = self.folder / name
        try:
            return verify(here)
        except CheckpointError:
            if self.mirror is None:
                raise
        try:
            with self.mirror.fetched(name, self.folder) as copy:
                verify(copy)
                shutil.rmtree(here, ignore_errors=True)
                with contextlib.suppress(OSError):  # another worker of this machine was first
                    copy.rename(here)
        except OSError as error:
            raise CheckpointError(f"{self.mirror.uri}/{name} cannot be read ({error})") from None
        return verify(here)

    def save(
        self,
        step: int,
        config: ResolvedConfig,
        state: State,
        score: float | None = None,
        losses: Sequence[float] = (),
    ) -> Path:
        """Write a checkpoint, copy it to the mirror, and delete older ones; one process of the run calls.

        The newest ``keep`` and the best ``keep_best`` by score, of ``config.checkpoint``, stay. A mirror that cannot be
        reached does not end the run: a warning is logged, and the next checkpoint is copied again.

        Raises:
            RunError: it cannot be written; older checkpoints are as they were.
        """
        final = self.path(step)
        try:
            write(final, step, config, state, score, losses)
        except (OSError, safetensors.SafetensorError) as error:
            raise RunError(f"checkpoint {final} cannot be written ({error}): older checkpoints are untouched") from None
        for name in _superfluous(final.name, {path.name: _score(path) for path in self.list()}, config.checkpoint):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        if self.mirror:
            try:
                self.mirror.put(final, last=META)
                scores = {name: score_in(self.mirror.read(name, META)) for name in self.mirror.names()}
                for name in _superfluous(final.name, scores, config.checkpoint):
                    self.mirror.delete(name)
            except OSError as error:
                log.warning("%s could not be copied to %s (%s)", final, self.mirror.uri, error)
        return final

    def adopt(self, source: Path) -> Checkpoint:
        """Copy a checkpoint of another run into this run, which has none yet, to continue from it; one process calls.

        Raises:
            CheckpointError: the other is damaged.
            RunError: it cannot be copied.
        """
        whole = verify(source)
        final = self.path(whole.step)
        try:
            with replacing(final) as aside:
                shutil.copytree(source, aside)
        except OSError as error:
            raise RunError(f"checkpoint {source} cannot be copied to {final} ({error})") from None
        return whole._replace(path=final)

    def remove_torn(self) -> None:
        """Delete the temporary directories that a killed process left."""
        for torn in self.torn():
            shutil.rmtree(torn, ignore_errors=True)

    def torn(self) -> Sequence[Path]:
        """Return the temporary directories that a killed process, or one that is writing now, left."""
        return sorted(self.folder.glob(".step-*.tmp"))


def _superfluous(written: str, scores: Mapping[str, float | None], kept: CheckpointConfig) -> Sequence[str]:
    """Return the names of checkpoints to delete after ``written`` was; ``scores`` holds the names and scores of all."""
    later = [name for name in scores if name > written]  # damaged: else the run would have resumed from them
    names = sorted((name for name in scores if name <= written), reverse=True)
    ranked = sorted(((score, name) for name in names if (score := scores[name]) is not None), reverse=True)
    best = [name for _, name in ranked[: kept.keep_best]]
    return later + [name for name in names[kept.keep :] if name not in best]


def _step_of(name: str) -> int:
    return int(name.rpartition("-")[2])


def _score(path: Path) -> float | None:
    try:
        return score_in((path / META).read_bytes())
    except OSError:
        return None
