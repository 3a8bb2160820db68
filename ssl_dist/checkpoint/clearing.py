"""``ssl-dist checkpoint clear``: old runs' checkpoints that a person deletes; ``Checkpoints`` deletes its own."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ssl_dist.checkpoint.checkpoints import FOLDER, Checkpoints
from ssl_dist.errors import RunError
from ssl_dist.files import RUN_LOCK, lock


class Clearing(NamedTuple):
    """The checkpoints of a run that are kept, and those that it can do without.

    Attributes:
        kept: the newest, the newest that verifies, and the best where it is asked for.
        superfluous: all others, and what a killed process left of one, with their bytes.
    """

    run: Path
    kept: Sequence[Path]
    superfluous: dict[Path, int]

    @classmethod
    def plan(cls, run: Path, *, keep_best: bool) -> Clearing:
        """Find what can be deleted; nothing is changed.

        Args:
            keep_best: keep the checkpoint with the best online probe too, where one has a score.

        Raises:
            RunError: the directory has no checkpoints, or its run has not ended.
            CheckpointError: none verifies, so nobody knows which is worth keeping.
        """
        checkpoints = Checkpoints(run)
        if not (there := checkpoints.list()):
            below = next((below for below in ("trials/*", "*") if any(run.glob(f"{below}/{FOLDER}"))), "")
            runs = f", such as {run}/{below}" if below else ""
            raise RunError(f"{run} has no checkpoints: give directories of runs that have written one{runs}")
        with _ended(run):
            newest = checkpoints.newest()
            kept = {there[0], newest.path if newest else there[0]}
            if keep_best and any(row["score"] is not None for row in checkpoints.describe()):
                kept.add(checkpoints.best().path)
            others = [path for path in (*there, *checkpoints.torn()) if path not in kept]
            return cls(run, sorted(kept), {path: _bytes_in(path) for path in others})

    def execute(self) -> None:
        """Delete what is superfluous.

        Raises:
            RunError: the run has not ended, or a directory cannot be deleted.
        """
        with _ended(self.run):
            for path in self.superfluous:
                try:
                    shutil.rmtree(path)
                except OSError as error:
                    raise RunError(f"{path} cannot be deleted ({error})") from None

    def plain(self) -> dict[str, Any]:
        """Return it as plain values, for JSON."""
        sizes = [{"path": str(path), "bytes": size} for path, size in self.superfluous.items()]
        return {"kept": list(map(str, self.kept)), "superfluous": sizes}


@contextlib.contextmanager
def _ended(run: Path) -> Iterator[None]:
    """Hold a run's lock, so that nobody resumes it meanwhile; raise RunError where it is being run."""
    held = lock(run / RUN_LOCK)
    if held is None:
        raise RunError(f"{run} is being run by another process, so nothing is deleted: wait for its end")
    with held:
        yield


def _bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
