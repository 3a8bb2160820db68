"""Tables of a profile: where the time of a run's start and of its steps went."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

from rich.table import Column, Table

from ssl_dist.commands.console import console, say, table


def show_profile(profile: Mapping[str, Any], started: list[tuple[str, float]]) -> None:
    """Print the tables of a profile.

    Args:
        profile: what ``training.profiling.read_profile`` has found.
        started: marks of the driver, see ``timing.marks``.
    """
    if start := profile.get("start"):
        if start["host"] != socket.gethostname():
            say(f"worker 0 ran on {start['host']}, whose clock may differ from this machine's")
        console.print(_start_table(started, start["marks"]))
    if steps := profile.get("steps"):
        first, number = steps["first_step"] + 1, steps["steps"]
        console.print(_step_table(steps))
        say(f"steps {first} to {first + number - 1}; for Perfetto and TensorBoard: {steps['trace']}")
    else:
        say("no step was profiled: the run was too short")


def _start_table(driver: list[tuple[str, float]], worker: list[tuple[str, float]]) -> Table:
    """Make the table of the start, in the order of time; a part takes the time since the same process's last one."""
    by_time = sorted((at, who, what) for who, some in (("driver", driver), ("worker 0", worker)) for what, at in some)
    began, last = by_time[0][0], dict[str, float]()
    shown = table("start", Column("took", justify="right"), Column("at", justify="right"))
    for at, who, what in by_time:
        took = f"{at - last[who]:.2f} s" if who in last else ""
        shown.add_row(f"{who}: {what}", took, f"{at - began:.2f} s")
        last[who] = at
    return shown


def _step_table(steps: Mapping[str, Any]) -> Table:
    """Make the table of a step's sections; what is left of its time is called other."""
    whole, sections = steps["step_ms"], steps["sections"]
    on_gpu = any(one["gpu_ms"] for one in sections.values())
    columns = ["ms", "share", *(["ms on the GPU"] if on_gpu else [])]
    shown = table("step", *(Column(name, justify="right") for name in columns))
    other = whole - sum(one["host_ms"] for one in sections.values())
    for name, one in [*sections.items(), ("other", {"host_ms": other, "gpu_ms": 0.0}), ("step", {"host_ms": whole})]:
        if one["host_ms"] or one.get("gpu_ms"):
            gpu = [f"{one.get('gpu_ms', 0.0):.2f}"] if on_gpu else []
            shown.add_row(name, f"{one['host_ms']:.2f}", f"{one['host_ms'] / whole:.1%}", *gpu)
    return shown
