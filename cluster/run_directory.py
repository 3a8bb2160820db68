"""A run's directory: its lock, its config, the requests to its workers, and the error that ended it.

RUN/
  config.json     the resolved config
  recipe.txt      the recipe that the run began with, as the user named it
  checkpoints/  tensorboard/  metrics.jsonl  health.jsonl     see ssl_dist.checkpoint and ssl_dist.training.monitor
  starts.jsonl    machine, workers and versions of each start, see ssl_dist.training.starts
  worker-N.log    log of worker N
  error.json      the last error raised on purpose; deleted when the run resumes
  stop            asks the workers to end after this step, with a checkpoint
  save            asks them for a checkpoint after this step
  lock            held by the process that drives the run, which it names; its time is the last sign of life
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from cluster.run_status import CONFIG, ERROR, SIGN_EVERY_S, STOP, WARNING, driver_of_this_process
from ssl_dist import errors
from ssl_dist.config import ResolvedConfig
from ssl_dist.config.resolved import DIGESTS_OF_STORE
from ssl_dist.errors import RunError, SslDistError
from ssl_dist.files import RUN_LOCK, RUN_RECIPE, lock, write_text

# Settings that may change when a run resumes: they decide how fast and where it runs, not which model comes out. A
# store, a label file or weights may move; the facts about them, such as their digests, must stay the same.
FREE_ON_RESUME = (
    "cluster",
    "checkpoint",
    "monitor",
    "batch.keep_graphs",
    "engine.zero_stage",
    "engine.memory_format",
    "engine.compile",
    "engine.deterministic",
    "data.store",
    "data.label_file",
    "data.cache",
    "data.cache_gb",
    "backbone.weights",
    "probe.label_file",
)


_LOCK_TRIES, _LOCK_PAUSE_S = 10, 0.05
_FAULT = re.compile(r"^Fatal Python error: (.+)$", re.MULTILINE)  # what a worker's log has of a crash


def may_change_on_resume(key: str) -> bool:
    """Return whether this dotted key may change when a run resumes."""
    return any(key == free or key.startswith(f"{free}.") for free in FREE_ON_RESUME)


def forbidden_changes(before: ResolvedConfig, now: ResolvedConfig) -> list[str]:
    """List the changed settings that must not change on resume, each as ``key value (began with value)``.

    The content of the store is left to ``ResolvedConfig.expect_same_data``.
    """
    began, asked = before.flat(), now.flat()
    free = {f"facts.{name}" for name in DIGESTS_OF_STORE} | set(filter(may_change_on_resume, {**began, **asked}))
    keys = [key for key in {**began, **asked} if key not in free and began.get(key) != asked.get(key)]
    return [f"{key} {asked.get(key)} (began with {began.get(key)})" for key in keys]


@dataclass
class RunDirectory:
    """A run's directory at the absolute ``path``; one process at a time holds its lock."""

    path: Path
    _lock: IO[str] | None = field(default=None, repr=False)
    _next_sign: float = field(default=0.0, repr=False)

    @classmethod
    def create(cls, path: Path, config: ResolvedConfig, recipe: str = "") -> RunDirectory:
        """Make a new directory with the run's config and the name of its recipe in it, and lock it.

        Raises:
            RunError: the directory is not empty, or cannot be written.
        """
        run = cls(path.absolute())
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            if any(run.path.iterdir()):
                raise RunError(f"{path} is not empty: resume its run by --resume {path}, or choose another --run-dir")
            run.acquire_lock()
            run.update(config)
            if recipe:
                write_text(run.path / RUN_RECIPE, f"{recipe}\n")
        except OSError as error:
            raise RunError(f"run directory {path} cannot be written: {error.strerror}") from None
        return run

    @classmethod
    def claim(cls, path: Path, config: ResolvedConfig) -> RunDirectory:
        """Lock a directory, made if it is missing, and write ``config`` into it.

        Nothing is compared: the caller makes sure that a run which began there has this config.

        Raises:
            RunError: another process holds the lock.
        """
        run = cls(path.absolute())
        run.path.mkdir(parents=True, exist_ok=True)
        run.acquire_lock()
        run.update(config)
        return run

    def release(self) -> None:
        """Unlock the directory for other processes."""
        if self._lock:
            self._lock.close()
            self._lock = None

    @classmethod
    def reopen(cls, path: Path) -> tuple[RunDirectory, ResolvedConfig]:
        """Lock a run that has begun, and read its config.

        Raises:
            RunError: the directory holds no run, or another process holds the lock.
        """
        run = cls(path.absolute())
        try:
            tree = json.loads((run.path / CONFIG).read_text(encoding="utf-8"))
            run.acquire_lock()
        except (OSError, ValueError) as error:
            raise RunError(f"{path} is not a run that can resume ({error})") from None
        return run, ResolvedConfig.from_tree(tree, str(run.path / CONFIG))

    def update(self, config: ResolvedConfig) -> None:
        """Write the config, so that the next resume starts from the settings of this one."""
        write_text(self.path / CONFIG, config.model_dump_json(indent=1))

    def discard(self) -> None:
        """Delete the directory if nothing has run in it."""
        found = [path.name for path in self.path.iterdir()]
        if self._lock and {CONFIG, RUN_LOCK} <= {*found} <= {CONFIG, RUN_RECIPE, RUN_LOCK, STOP, ERROR, WARNING}:
            for name in found:
                (self.path / name).unlink()
            self.path.rmdir()

    def acquire_lock(self) -> None:
        """Lock the directory, and delete what an earlier start may have left there."""
        tries = _LOCK_TRIES  # `ssl-dist status` locks it for a moment, to see whether another process has locked it
        while (found := lock(self.path / RUN_LOCK)) is None and (tries := tries - 1):
            time.sleep(_LOCK_PAUSE_S)
        if found is None:
            raise RunError(f"{self.path} is being run by another process: wait for it, or start a new run")
        self._lock = found
        self._lock.truncate(0)
        self._lock.write(driver_of_this_process())
        self._lock.flush()
        for name in (STOP, "save", ERROR):
            (self.path / name).unlink(missing_ok=True)

    def give_sign_of_life(self) -> None:
        """Touch the lock, at most every ten seconds; the process that drives the run calls this often."""
        if time.monotonic() >= self._next_sign:
            self._next_sign = time.monotonic() + SIGN_EVERY_S
            os.utime(self.path / RUN_LOCK)

    def ask_to_stop(self) -> None:
        (self.path / STOP).touch()

    def stop_asked(self) -> bool:
        return (self.path / STOP).exists()

    def ask_to_save(self) -> None:
        (self.path / "save").touch()

    def save_asked(self) -> bool:
        """Return whether a checkpoint was asked for since the last call; the request is deleted."""
        try:
            (self.path / "save").unlink()
        except FileNotFoundError:
            return False
        return True

    def write_warning(self, text: str) -> None:
        """Write a warning for the driver to show."""
        write_text(self.path / WARNING, text)

    def take_warning(self) -> str:
        """Return the warning that was written since the last call, and delete it."""
        try:
            text = (self.path / WARNING).read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""
        (self.path / WARNING).unlink()
        return text

    def write_error(self, error: SslDistError, *, final: bool) -> None:
        """Write an error for the driver to read; only a ``final`` error replaces an earlier one."""
        target = self.path / ERROR
        if final or not target.exists():
            write_text(target, json.dumps({"kind": type(error).__name__, "message": str(error)}))

    def read_error(self) -> SslDistError | None:
        try:
            found = json.loads((self.path / ERROR).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        error: SslDistError = getattr(errors, found["kind"])(found["message"])
        return error

    def read_crash(self) -> str | None:
        """Return which worker crashed since its last start and by which signal; None where no log has that."""
        names = {signal.strsignal(number): number.value for number in signal.Signals}
        for file in sorted(self.path.glob("worker-*.log")):
            _, _, text = file.read_text(encoding="utf-8", errors="replace").rpartition(": process ")
            if found := _FAULT.search(text):
                name = found[1].replace("-", " ")
                number = f"signal {names[name]}, " if name in names else ""
                return f"worker {file.stem.rpartition('-')[2]} crashed ({number}{found[1]})"
        return None
