"""Tell what a machine is: the cores that a process may use, what its CPU can do, and which versions it has."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
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


def cpu_name() -> str:
    """Return the name of the CPU, or of its architecture where the system does not tell."""
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def memory_bytes() -> int:
    """Return the memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def python_version() -> str:
    return platform.python_version()


def version_of(library: str) -> str:
    """Return the version of an installed library, "unknown" where it is not there under this name."""
    try:
        return version(library)
    except PackageNotFoundError:  # as of onnxruntime, which onnxruntime-gpu brings
        return "unknown"
