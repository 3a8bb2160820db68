"""Tell how many cores a process may use, and what its CPU can do."""

from __future__ import annotations

import os
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")
_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # on x86, and on ARM


def num_cores() -> int:
    """Return the number of CPU cores that this process may run on; macOS tells only how many the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_bf16() -> bool:
    """Return whether the CPU computes in bfloat16 by instructions of its own; True where the system does not tell."""
    try:
        text = _CPU_INFO.read_text()
    except OSError:
        return True
    flags = next((line for line in text.splitlines() if line.lower().startswith(("flags", "features"))), "")
    return not flags or not _BF16.isdisjoint(flags.split())
