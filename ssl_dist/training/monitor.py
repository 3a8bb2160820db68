"""The monitor of a run: its numbers go to metrics.jsonl and the boards, and are judged by the health watch.

RUN/tensorboard/      scalars, augmented views, hyperparameters, sentences of the health watch, see ``boards``
RUN/metrics.jsonl     the same scalars, see ``metrics``
RUN/health.jsonl      the same sentences, see ``health.findings``
"""

from __future__ import annotations

import contextlib
import json
import logging
import resource
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_dist import methods
from ssl_dist.config import Plan, ResolvedConfig
from ssl_dist.files import write_text
from ssl_dist.training.boards import Boards
from ssl_dist.training.health import HEALTH, Finding, read_health
from ssl_dist.training.health.watch import HealthWatch, rules_of
from ssl_dist.training.metrics import METRICS, MetricsReader

log = logging.getLogger(__name__)

_PICTURED = 8  # images whose views are drawn


class Monitor:
    """Writes a run's numbers; only rank 0 has one.

    Args:
        run: the run directory.
        first_step: steps done before; lines and scalars of later steps, from an interrupted run, are dropped.
        probe_images: number of images that the online probe classifies; 0: there is no probe.
    """

    def __init__(
        self, run: Path, config: ResolvedConfig, plan: Plan, first_step: int, *, probe_images: int = 0
    ) -> None:
        self._plan = plan
        past, _ = (_drop_after(run, name, first_step) for name in (METRICS, HEALTH))
        self._lines = (run / METRICS).open("a", encoding="utf-8")
        self._findings = (run / HEALTH).open("a", encoding="utf-8")
        self._boards = Boards(run, config, first_step)
        loss_falls = methods.load(config.method.name).loss_falls
        self._watch = HealthWatch(
            rules_of(config, plan, loss_falls=loss_falls, probe_images=probe_images), past, read_health(run)
        )
        self._tell(self._watch.begin(config, first_step, self._epoch(first_step)))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write values by tag, measured after ``step`` steps."""
        self._boards.scalars(step, values)
        line = {"step": step, "epoch": self._epoch(step), **values}
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()
        self._tell(self._watch.look(line))

    def views(self, step: int, views: Tensor) -> None:
        """Draw views ``[V, N, 3, S, S]`` of the first images, one column for each image."""
        picture = views[:, :_PICTURED].permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)  # [3, V * S, N * S]
        pixels = (picture.float().cpu() * 255).clamp(0, 255).byte().permute(1, 2, 0)
        self._boards.picture(step, "views", pixels.numpy())

    def _epoch(self, step: int) -> float:
        return round(step / self._plan.steps_per_epoch, 4)

    def _tell(self, findings: Sequence[Finding]) -> None:
        """Say what the health watch has found, in all places."""
        for finding in findings:
            log.warning("step %d: %s", finding.step, finding.text)
            self._boards.text(finding.step, f"health/{finding.rule}", finding.text)
            self._findings.write(json.dumps(finding._asdict()) + "\n")
            self._findings.flush()

    def close(self, *, failed: bool = False) -> None:
        """Mark the run as ended in the boards, by an error or as it should, and close the files."""
        self._boards.close(failed=failed)
        self._lines.close()
        self._findings.close()


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


def _drop_after(run: Path, name: str, last_step: int) -> list[dict[str, Any]]:
    """Rewrite a file without the lines of later steps and without a torn last line; return its lines."""
    kept = [line for line in MetricsReader(run, name).read_new() if line["step"] <= last_step]
    if (run / name).exists():
        write_text(run / name, "".join(json.dumps(line) + "\n" for line in kept))
    return kept
