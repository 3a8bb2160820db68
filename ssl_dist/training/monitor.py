"""The monitor of a run: its numbers are written to TensorBoard and metrics.jsonl.

RUN/tensorboard/      scalars, augmented views, hyperparameters
RUN/metrics.jsonl     the same scalars, see ``metrics``
"""

from __future__ import annotations

import contextlib
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from ssl_dist.config import Plan, RunConfig
from ssl_dist.files import write_text
from ssl_dist.training.metrics import METRICS, MetricsReader
from ssl_dist.uris import without_secrets

TENSORBOARD = "tensorboard"
_PICTURED = 8  # images whose views are drawn


class Monitor:
    """Writes a run's numbers; only rank 0 has one.

    Args:
        run: the run directory.
        first_step: steps done before; lines and scalars of later steps, from an interrupted run, are dropped.
    """

    def __init__(self, run: Path, config: RunConfig, plan: Plan, first_step: int) -> None:
        self._plan = plan
        _drop_after(run, first_step)
        self._lines = (run / METRICS).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run / TENSORBOARD), purge_step=first_step + 1)
        wanted = config.monitor.hparams
        known = {key: _shown(value) for key, value in config.flat().items() if wanted is None or key in wanted}
        measured = [config.probe.tag] if config.probe else []
        experiment, start, self._end = hparams(known, dict.fromkeys([*measured, "train/loss"], 0.0))
        self._summary(experiment)
        self._summary(start)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write values by tag, measured after ``step`` steps."""
        for tag, value in values.items():
            self._board.add_scalar(tag, value, step)
        line = {"step": step, "epoch": round(step / self._plan.steps_per_epoch, 4), **values}
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()

    def views(self, step: int, views: Tensor) -> None:
        """Draw views ``[V, N, 3, S, S]`` of the first images, one column for each image."""
        picture = views[:, :_PICTURED].permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)  # [3, V * S, N * S]
        self._board.add_image("views", picture.float().cpu(), step)

    def _summary(self, summary: Any) -> None:
        self._board._get_file_writer().add_summary(summary)

    def close(self) -> None:
        """Mark the run as ended in TensorBoard, and close the files."""
        self._summary(self._end)
        self._board.close()
        self._lines.close()


class Stopwatch:
    """Measures training time from ``step`` on, without the pauses for probes and checkpoints."""

    def __init__(self, step: int) -> None:
        self._began, self._paused, self._steps, self._waited = time.perf_counter(), 0.0, step, 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the block out."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - began

    def lap(self, step: int, batch_size: int, waited_s: float) -> dict[str, float]:
        """Return rates and peak memory since the last lap; ``waited_s`` is the time spent waiting for data so far."""
        now = time.perf_counter()
        busy = max(now - self._began - self._paused, 1e-9)
        rates = {
            "speed/images_per_s": (step - self._steps) * batch_size / busy,
            "speed/data_wait_share": (waited_s - self._waited) / busy,
            "memory/peak_mb": peak_mb(),
        }
        self._began, self._paused, self._steps, self._waited = now, 0.0, step, waited_s
        return rates


def peak_mb() -> float:
    """Return this process' peak memory in MB: of the GPU where it uses one (untested), otherwise resident memory."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _shown(value: Any) -> bool | int | float | str:
    """Convert a hyperparameter to a type that TensorBoard takes."""
    if isinstance(value, str):
        return without_secrets(value)
    return value if isinstance(value, (bool, int, float)) else json.dumps(value)


def _drop_after(run: Path, last_step: int) -> None:
    """Rewrite the metrics without the lines of later steps and without a torn last line."""
    if (run / METRICS).exists():
        kept = [json.dumps(line) + "\n" for line in MetricsReader(run).read_new() if line["step"] <= last_step]
        write_text(run / METRICS, "".join(kept))
