"""The progress bar of a run, drawn from its files, and so by any process; torch is not needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from ssl_dist.progress import Pace, ProgressLines
from ssl_dist.training.health import Finding, read_health
from ssl_dist.training.metrics import MetricsReader, newest_checkpoint

_FIRST_LOG = "worker-0.log"
_WAITING, _STARTING = "waiting for a worker", "waiting for the first step"
_WIDE = 100  # columns of a screen that has room for the time that has passed


class ProgressBar:
    """Shows a run's progress by its files, as a bar or as lines of text; the run may be another process."""

    def __init__(self, run: Path, console: Console) -> None:
        self._run, self._metrics, self._pace = run, MetricsReader(run), Pace()
        self._logged, self._checkpoint = _bytes(run / _FIRST_LOG), newest_checkpoint(run)
        self._saved_step = 0  # of a checkpoint that was written since the bar began
        self.last: dict[str, Any] = {}
        self._start: dict[str, Any] = {}  # the values of step 0
        self._later: dict[str, Any] = {}  # the last values of later steps
        self._old = {self._take(line) for line in self._metrics.read_new()}  # lines of before the run was resumed
        self._going = False
        self._console, self._said = console, set[Finding](read_health(run))
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
        """Read new metrics and redraw; print a line of text at each new probe and checkpoint, and what is unhealthy."""
        self._show_health()
        probed = False
        for line in self._metrics.read_new():
            if self._take(line) not in self._old:
                self._going = True
                probed |= any(tag.startswith("probe/") for tag in line)
        if not self._going or "plan/total_steps" not in self.last:
            if _bytes(self._run / _FIRST_LOG) > self._logged:
                self._progress.update(self._task, description=_STARTING)
                self._lines.update(_STARTING)
            return
        probes = {tag.partition("/")[2]: tag for tag in self.last if tag.startswith("probe/")}
        earlier, self._checkpoint = self._checkpoint, newest_checkpoint(self._run)
        saved = self._checkpoint if self._checkpoint != earlier else ""
        self._saved_step = int(saved.rpartition("-")[2]) if saved else self._saved_step
        done, total = max(self.last["step"], self._saved_step), self.last["plan/total_steps"]  # metrics come later
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
        words = [f"step {done:,} of {total:,}", numbers, self._pace(done, total)[1], saved and f"checkpoint {saved}"]
        self._lines.update(", ".join(filter(None, words)), reached=probed or bool(saved))

    def _show_health(self) -> None:
        for finding in read_health(self._run):
            if finding not in self._said:
                self._said.add(finding)
                text = f"warning: step {finding.step:,}: {finding.text}"
                self._console.print(text, markup=False, highlight=False, soft_wrap=True)

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
