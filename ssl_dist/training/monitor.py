"""The monitor of a run: its numbers are written to TensorBoard and metrics.jsonl, and shown in a progress bar.

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
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from ssl_dist.config import Plan, RunConfig
from ssl_dist.files import write_text
from ssl_dist.progress import Pace, ProgressLines
from ssl_dist.training.metrics import METRICS, MetricsReader, newest_checkpoint
from ssl_dist.uris import without_secrets

TENSORBOARD = "tensorboard"
FIRST_LOG = "worker-0.log"
_WAITING, _STARTING = "waiting for a worker", "waiting for the first step"
_WIDE = 100  # columns of a screen that has room for the time that has passed
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


class ProgressBar:
    """Shows a run's progress by its files, as a bar or as lines of text; the run may be another process."""

    def __init__(self, run: Path, console: Console) -> None:
        self._run, self._metrics, self._pace = run, MetricsReader(run), Pace()
        self._logged, self._checkpoint = _bytes(run / FIRST_LOG), newest_checkpoint(run)
        self.last: dict[str, Any] = {}
        self._start: dict[str, Any] = {}  # the values of step 0
        self._later: dict[str, Any] = {}  # the last values of later steps
        self._old = {self._take(line) for line in self._metrics.read_new()}  # lines of before the run was resumed
        self._going = False
        numbers = TextColumn("{task.fields[numbers]}")
        done = MofNCompleteColumn(table_column=Column(no_wrap=True))
        columns = (TextColumn("{task.description}"), BarColumn(None), done, numbers)
        self._lines = ProgressLines(console, _WAITING)
        clocks = [clock(table_column=Column(no_wrap=True)) for clock in (TimeElapsedColumn, TimeRemainingColumn)]
        clocks = clocks[console.width < _WIDE :]
        self._progress = Progress(*columns, *clocks, console=console, disable=self._lines.wanted)
        self._task = self._progress.add_task(_WAITING, total=None, numbers="")

    def __enter__(self) -> ProgressBar:
        self._lines.__enter__()
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.update()
        self._progress.stop()
        self._lines.__exit__()

    def update(self) -> None:
        """Read new metrics and redraw; print a line of text at each new probe and checkpoint."""
        probed = False
        for line in self._metrics.read_new():
            if self._take(line) not in self._old:
                self._going = True
                probed |= any(tag.startswith("probe/") for tag in line)
        if not self._going or "plan/total_steps" not in self.last:
            if _bytes(self._run / FIRST_LOG) > self._logged:
                self._progress.update(self._task, description=_STARTING)
                self._lines.update(_STARTING)
            return
        probes = {tag.partition("/")[2]: tag for tag in self.last if tag.startswith("probe/")}
        done, total = self.last["step"], self.last["plan/total_steps"]
        before = {
            tag: f"{self._start[tag]:.3g} to " for tag in probes.values() if tag in self._start and tag in self._later
        }
        shown = {"loss": "train/loss", **probes}
        present = {name: tag for name, tag in shown.items() if tag in self.last}
        words = [f"{name} {before.get(tag, '')}{_rounded(self.last[tag])}" for name, tag in present.items()]
        if rate := self.last.get("speed/images_per_s"):
            words.append(f"{rate:,.0f} img/s")
        numbers = "  ".join(words)
        self._progress.update(self._task, description="steps", total=total, completed=done, numbers=numbers)
        earlier, self._checkpoint = self._checkpoint, newest_checkpoint(self._run)
        saved = f"checkpoint {self._checkpoint}" if self._checkpoint != earlier else ""
        words = [f"step {done:,} of {total:,}", numbers, self._pace(done, total)[1], saved]
        self._lines.update(", ".join(filter(None, words)), reached=probed or bool(saved))

    def _take(self, line: dict[str, Any]) -> str:
        """Keep the values of a line of metrics; return it as text."""
        self.last.update(line)
        (self._later if line["step"] else self._start).update(line)
        return json.dumps(line)


def _bytes(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _rounded(value: float) -> str:
    """Format a number of a bar with four digits, a large one with all before the point."""
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


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
