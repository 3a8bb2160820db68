"""What a profile is made of: when the parts of a process's start were done, and the named sections of a step."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.autograd.profiler import record_function

PREFIX = "ssl_dist: "
SECTIONS = (
    "wait for data",
    "views",
    "forward",
    "loss",
    "backward",
    "reduce",
    "optimizer",
    "running statistics",
    "after the step",
    "vote",
    "log",
    "probe",
    "projector",
    "checkpoint",
)

_marks: list[tuple[str, float]] = []


def section(name: str) -> record_function:
    """Return a context that counts as one of ``SECTIONS`` where the step is profiled; else it costs a microsecond."""
    from torch.autograd.profiler import record_function

    return record_function(PREFIX + name)


def mark(done: str) -> None:
    """Note that a part of this process's start is done."""
    _marks.append((done, time.time()))


def marks() -> list[tuple[str, float]]:
    """Return (what was done, seconds since 1970) in the order of time, the start of the process first."""
    return [("process started", _process_start()), *_marks]


def _process_start() -> float:
    """Return when this process was started, in seconds since 1970, to a hundredth of a second."""
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    uptime_s = float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0])
    return time.time() - uptime_s + int(fields[19]) / os.sysconf("SC_CLK_TCK")
