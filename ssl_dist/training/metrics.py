"""Reading a run's metrics.jsonl: one JSON object a line, with step, epoch, and then tag: value."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from ssl_dist.errors import RunError

METRICS = "metrics.jsonl"


class MetricsReader:
    """Reads the metrics of a run piece by piece, while it may still be writing them.

    Args:
        run: its directory.
        name: of a file in it that has a JSON object a line.
    """

    def __init__(self, run: Path, name: str = METRICS) -> None:
        self._path, self._inode, self._offset = run / name, -1, 0

    def read_new(self) -> list[dict[str, Any]]:
        """Return the lines that were written since the last call, or all where a resume replaced the file.

        A last line without its end is left for the next call; a line that is damaged is left out.
        """
        lines = []
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            if (inode := os.fstat(file.fileno()).st_ino) != self._inode:
                self._inode, self._offset = inode, 0
            file.seek(self._offset)
            while (line := file.readline()).endswith(b"\n"):
                self._offset += len(line)
                with contextlib.suppress(ValueError):
                    lines.append(json.loads(line))
        return [line for line in lines if isinstance(line, dict)]


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics so far.

    Raises:
        RunError: there is no such run, or it has written nothing yet.
    """
    try:
        lines = MetricsReader(run).read_new()
    except OSError as error:
        raise RunError(f"{run} is not a run directory with metrics ({error})") from None
    if not lines:
        raise RunError(f"{run} is not a run directory with metrics: {METRICS} is missing, or no step is done yet")
    return lines


def newest_checkpoint(run: Path) -> str:
    """Return the name of a run's newest checkpoint, whole or damaged; "" where there is none."""
    return max((path.name for path in (run / "checkpoints").glob("step-*")), default="")
