"""The one place where numbers leave a run: TensorBoard, metrics.jsonl, and the progress bar that reads it.

RUN/tensorboard/      scalars, pairs of augmented views, hyperparameters
RUN/metrics.jsonl     the same scalars, one JSON object a line: step, epoch, then tag: value
"""

from __future__ import annotations

import json
import os
import resource
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from ssl_dist.config import Plan, RunConfig
from ssl_dist.uris import without_secrets

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
_PICTURED = 8  # images whose views are drawn


class Monitor:
    """Writes a run's numbers; one process of the run has it.

    Args:
        run: the run directory.
        first_step: steps done before; what an interrupted run wrote beyond it is dropped.
    """

    def __init__(self, run: Path, config: RunConfig, plan: Plan, first_step: int) -> None:
        self._plan = plan
        _keep_until(run / METRICS, first_step)
        self._lines = (run / METRICS).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run / TENSORBOARD), purge_step=first_step + 1)
        known = {
            key: _shown(value)
            for key, value in config.flat().items()
            if config.monitor.hparams is None or key in config.monitor.hparams
        }
        measured = [config.probe.tag] if config.probe else []
        experiment, start, self._end = hparams(known, dict.fromkeys([*measured, "train/loss"], 0.0))
        self._summary(experiment)
        self._summary(start)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write ``values`` as of ``step`` steps done."""
        for tag, value in values.items():
            self._board.add_scalar(tag, value, step)
        line = {"step": step, "epoch": round(step / self._plan.steps_per_epoch, 4), **values}
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()

    def views(self, step: int, views: Tensor) -> None:
        """Draw the views ``[V, N, 3, S, S]`` of the first images, one image a column."""
        picture = views[:, :_PICTURED].permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)  # [3, V * S, N * S]
        self._board.add_image("views", picture.float().cpu(), step)

    def _summary(self, summary: Any) -> None:
        self._board._get_file_writer().add_summary(summary)

    def close(self) -> None:
        self._summary(self._end)
        self._board.close()
        self._lines.close()


class Stopwatch:
    """Training time apart from pauses (probe, checkpoint), and the share of it spent waiting for data."""

    def __init__(self) -> None:
        self._began, self._paused, self._steps, self._waited = time.perf_counter(), 0.0, 0, 0.0
        self._pause_began = 0.0

    def __enter__(self) -> None:
        self._pause_began = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._paused += time.perf_counter() - self._pause_began

    def lap(self, step: int, batch_size: int, waited_s: float) -> dict[str, float]:
        """Rates since the last lap."""
        now = time.perf_counter()
        busy = max(now - self._began - self._paused, 1e-9)
        rates = {
            "speed/images_per_s": (step - self._steps) * batch_size / busy,
            "speed/data_wait_share": (waited_s - self._waited) / busy,
            "memory/peak_mb": peak_mb(),
        }
        self._began, self._paused, self._steps, self._waited = now, 0.0, step, waited_s
        return rates

    def start(self, step: int) -> None:
        self._began, self._paused, self._steps = time.perf_counter(), 0.0, step


def peak_mb() -> float:
    """Of this process: of its GPU's memory where it uses one (untested), of resident memory otherwise."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


class ProgressBar:
    """Draws a run from its metrics.jsonl, from another process if need be."""

    def __init__(self, run: Path, console: Console) -> None:
        self._path, self._inode, self._offset = run / METRICS, -1, 0
        self.last: dict[str, Any] = {}
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
        )
        self._progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
        self._task = self._progress.add_task("starting", total=None, numbers="")

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.update()
        self._progress.stop()

    def update(self) -> None:
        """Read what was written since and redraw."""
        if not self._path.exists():
            return
        if (inode := self._path.stat().st_ino) != self._inode:  # a restart put a shorter file in its place
            self._inode, self._offset = inode, 0
        with self._path.open(encoding="utf-8") as file:
            file.seek(self._offset)
            while (line := file.readline()).endswith("\n"):
                self._offset = file.tell()
                self.last.update(json.loads(line))
        if "plan/total_steps" not in self.last:
            return
        probes = {tag.partition("/")[2]: tag for tag in self.last if tag.startswith("probe/")}
        shown = {"loss": "train/loss", **probes, "img/s": "speed/images_per_s"}
        numbers = "  ".join(f"{name} {self.last[tag]:.4g}" for name, tag in shown.items() if tag in self.last)
        total = self.last["plan/total_steps"]
        self._progress.update(
            self._task, description="steps", total=total, completed=self.last["step"], numbers=numbers
        )


def _shown(value: Any) -> bool | int | float | str:
    """A hyperparameter as TensorBoard takes it."""
    if isinstance(value, str):
        return without_secrets(value)
    return value if isinstance(value, (bool, int, float)) else json.dumps(value)


def _keep_until(path: Path, last_step: int) -> None:
    """Drop the lines of later steps, and a torn last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= last_step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue
    aside = path.with_suffix(".tmp")
    aside.write_text("".join(kept), encoding="utf-8")
    os.replace(aside, path)
