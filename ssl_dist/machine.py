"""Tell what a machine is: the cores and the memory that a process may use, what its CPU can do, its versions."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")
_GROUPS, _OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
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


def free_memory_bytes() -> int:
    """Return how much memory processes may still take: of the machine, and of this process's control group (Linux)."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError):  # another system than Linux
        return memory_bytes()
    return min([free, *_free_of_groups()])


def _free_of_groups() -> list[int]:
    """Return what each of this process's control groups (version 2) leaves; memory that caches files counts as free."""
    found = []
    try:
        own = _OWN_GROUP.read_text().rpartition("::")[2].strip().lstrip("/")
    except OSError:
        return []
    for folder in (_GROUPS / own, *(_GROUPS / own).parents):
        try:
            limit, used = ((folder / f"memory.{name}").read_text().strip() for name in ("max", "current"))
            cached = re.search(r"^inactive_file (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
        except OSError:
            continue
        if limit != "max":
            found.append(max(0, int(limit) - int(used) + (int(cached[1]) if cached else 0)))
    return found


def resident_bytes() -> int:
    """Return the resident memory of this process (Linux), 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def python_version() -> str:
    return platform.python_version()


def version_of(library: str) -> str:
    """Return the version of an installed library, "unknown" where it is not there under this name."""
    try:
        return version(library)
    except PackageNotFoundError:  # as of onnxruntime, which onnxruntime-gpu brings
        return "unknown"
