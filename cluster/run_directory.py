"""A run's directory: who has it, what was asked of it, why it ended.

RUN/
  config.json     the resolved config
  checkpoints/  tensorboard/  metrics.jsonl     see ssl_dist.checkpoint and ssl_dist.training.monitor
  worker-N.log    prose of worker N
  error.json      the last error raised on purpose; gone when the run goes on
  stop            asks the workers to end after this step, with a checkpoint
  save            asks them for a checkpoint after this step
  lock            held by the process that drives the run
"""

from __future__ import annotations

import fcntl
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ssl_dist import errors
from ssl_dist.config import RunConfig
from ssl_dist.errors import RunError, SslDistError
from ssl_dist.files import write_text

# What an earlier start left.
_STALE = ("stop", "save", "error.json")

# What may change when a run goes on: it decides how fast and where, not which model comes out. Of a store, a label file
# and weights, number and size of images and the digests are settings of their own, and these may not.
FREE_ON_RESUME = (
    "cluster",
    "checkpoint",
    "monitor",
    "engine.zero_stage",
    "data.store",
    "data.label_file",
    "data.cache",
    "data.cache_gb",
    "backbone.weights",
)


def is_free(key: str) -> bool:
    """May this dotted key change when a run goes on?"""
    return any(key == free or key.startswith(f"{free}.") for free in FREE_ON_RESUME)


def differences(before: RunConfig, now: RunConfig) -> list[str]:
    """What differs and may not, as ``key value (began with value)``; none where a run can go on with ``now``."""
    began, asked = before.flat(), now.flat()
    keys = [key for key in {**began, **asked} if not is_free(key) and began.get(key) != asked.get(key)]
    return [f"{key} {asked.get(key)} (began with {began.get(key)})" for key in keys]


@dataclass
class RunDirectory:
    """``path`` is absolute."""

    path: Path
    _lock: IO[str] | None = field(default=None, repr=False)

    @classmethod
    def create(cls, path: Path, config: RunConfig) -> RunDirectory:
        """A new directory with the run's config in it, locked.

        Raises:
            RunError: it exists and is not empty, or cannot be written.
        """
        run = cls(path.absolute())
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            if any(run.path.iterdir()):
                raise RunError(f"{path} is not empty: go on with it by --resume {path}, or choose another --run-dir")
            run._claim()
            run.update(config)
        except OSError as error:
            raise RunError(f"run directory {path} cannot be written: {error.strerror}") from None
        return run

    @classmethod
    def enter(cls, path: Path, config: RunConfig) -> RunDirectory:
        """A run of exactly this config, locked: new, or to go on with.

        Raises:
            RunError: another process drives it.
        """
        run = cls(path.absolute())
        run.path.mkdir(parents=True, exist_ok=True)
        run._claim()
        for name in _STALE:
            (run.path / name).unlink(missing_ok=True)
        run.update(config)
        return run

    def leave(self) -> None:
        """Let others have it."""
        if self._lock:
            self._lock.close()
            self._lock = None

    @classmethod
    def reopen(cls, path: Path) -> tuple[RunDirectory, RunConfig]:
        """A run to go on with, locked, and its config.

        Raises:
            RunError: not a run, or another process drives it.
        """
        run = cls(path.absolute())
        try:
            tree = json.loads((run.path / "config.json").read_text(encoding="utf-8"))
            run._claim()
            for name in _STALE:
                (run.path / name).unlink(missing_ok=True)
        except (OSError, ValueError) as error:
            raise RunError(f"{path} is not a run that can go on ({error})") from None
        return run, RunConfig.from_tree(tree, str(run.path / "config.json"))

    def update(self, config: RunConfig) -> None:
        """Keep the settings that a resume changed, for the next one."""
        write_text(self.path / "config.json", config.model_dump_json(indent=1))

    def discard(self) -> None:
        """Take back a directory in which nothing has run."""
        if self._lock and sorted(path.name for path in self.path.iterdir()) == ["config.json", "lock"]:
            for name in ("config.json", "lock"):
                (self.path / name).unlink()
            self.path.rmdir()

    def _claim(self) -> None:
        self._lock = (self.path / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{self.path} is being run by another process: wait for it, or start a new run") from None

    def ask_to_stop(self) -> None:
        (self.path / "stop").touch()

    def stop_asked(self) -> bool:
        return (self.path / "stop").exists()

    def ask_to_save(self) -> None:
        (self.path / "save").touch()

    def save_asked(self) -> bool:
        """Once for each time that it was asked for."""
        try:
            (self.path / "save").unlink()
        except FileNotFoundError:
            return False
        return True

    def write_error(self, error: SslDistError, *, final: bool) -> None:
        """Leave an error for the driver. A final one replaces another, which else stays."""
        target = self.path / "error.json"
        if final or not target.exists():
            write_text(target, json.dumps({"kind": type(error).__name__, "message": str(error)}))

    def read_error(self) -> SslDistError | None:
        try:
            found = json.loads((self.path / "error.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        kind = getattr(errors, found["kind"])
        error: SslDistError = kind(found["message"])
        return error
