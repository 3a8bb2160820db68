"""Where the time of a step goes: named sections of some steps are timed, and traced for Perfetto and TensorBoard.

RUN/profile/steps.json              milliseconds of each section, see ``StepProfile``
RUN/profile/start.json              marks of the start of worker 0's process, see ``ssl_dist.timing``
RUN/profile/NAME.pt.trace.json      the steps as torch's profiler has seen them
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_dist.files import to_json, write_text
from ssl_dist.timing import PREFIX, SECTIONS, mark, marks

if TYPE_CHECKING:
    from torch.profiler import profile

FOLDER = "profile"
STEPS, START = "steps.json", "start.json"
SKIPPED = 5  # steps before the first that is timed: memory is allocated and code compiled in them


class StepProfile:
    """Profiles some steps of a worker, after the first few of its start.

    It writes ``steps.json``: ``first_step``, ``steps``, ``step_ms`` (mean wall time of a step), ``trace``, and by the
    name of each of ``timing.SECTIONS``, without the sections inside it, the mean milliseconds a step: ``host_ms`` of
    this thread, ``gpu_ms`` of the kernels that it started on a GPU. Profiling makes a step a few percent slower.

    Args:
        run: the run directory.
        first_step: steps done before.
        steps: how many are profiled; 0: none, and nothing is written.
    """

    def __init__(self, run: Path, first_step: int, steps: int) -> None:
        self._folder, self._steps = run / FOLDER, steps
        if steps:
            for file in (STEPS, START):  # of an earlier start
                (self._folder / file).unlink(missing_ok=True)
        self._begin = first_step + SKIPPED
        self._first_step = first_step
        self._profiler: profile | None = None
        self._began = 0.0

    def after(self, step: int, *, is_last: bool) -> None:
        """Begin or end where it is time, after ``step`` steps."""
        if not self._steps:
            return
        if step == self._first_step + 1:
            mark("first step")
            self._folder.mkdir(exist_ok=True)
            write_text(self._folder / START, to_json({"host": socket.gethostname(), "marks": marks()}))
        if step == self._begin and not is_last:
            self._profiler = _start_profiler()
            self._began = time.perf_counter()
        elif self._profiler and (is_last or step == self._begin + self._steps):
            self._end(step - self._begin)

    def _end(self, steps: int) -> None:
        import torch  # not above, because a driver reads profiles

        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        seconds, profiler = time.perf_counter() - self._began, self._profiler
        assert profiler
        self._profiler = None
        profiler.stop()
        sections = _sections(profiler.events(), steps)
        trace = self._folder / f"steps-{self._begin + 1}-to-{self._begin + steps}.pt.trace.json"
        profiler.export_chrome_trace(str(trace))
        content = {"first_step": self._begin, "steps": steps, "step_ms": 1e3 * seconds / steps}
        write_text(self._folder / STEPS, to_json({**content, "sections": sections, "trace": str(trace)}))


def _start_profiler() -> profile:
    import torch
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_initialized():  # not run on a GPU yet
        activities.append(ProfilerActivity.CUDA)
    profiler = profile(activities=activities, acc_events=True)
    profiler.start()
    return profiler


def _sections(events: Iterable[Any], steps: int) -> dict[str, dict[str, float]]:
    """Return the mean milliseconds a step of each section, without the sections inside it."""
    found = {name: {"host_ms": 0.0, "gpu_ms": 0.0} for name in SECTIONS}
    around: list[Any] = []  # the sections that are open, of one thread
    for event in sorted(events, key=lambda event: (event.time_range.start, -event.time_range.end)):
        if not event.name.startswith(PREFIX) or event.device_type.name != "CPU":
            continue
        while around and around[-1].time_range.end <= event.time_range.start:
            around.pop()
        for one, sign in ((event, 1), *([(around[-1], -1)] if around else [])):
            mine = found[one.name.removeprefix(PREFIX)]
            mine["host_ms"] += sign * event.cpu_time_total / 1e3 / steps
            mine["gpu_ms"] += sign * event.device_time_total / 1e3 / steps
        around.append(event)
    return found


def read_profile(run: Path) -> dict[str, Any]:
    """Return what a profiled start of a run has left: ``steps``, ``start``; each only where it is there and whole."""
    found = dict[str, Any]()
    for name, file in (("steps", STEPS), ("start", START)):
        try:
            found[name] = json.loads((run / FOLDER / file).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
    return found
