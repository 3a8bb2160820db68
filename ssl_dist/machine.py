"""Count what this process may use of its machine."""

from __future__ import annotations

import os


def num_cores() -> int:
    """Return the number of CPU cores that this process may run on; macOS tells only how many the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
