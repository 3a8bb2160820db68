"""Tell what a machine is: the cores and the memory that a process may use, what its CPU can do, its versions."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")
_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_GROUP_FILES = {  # by the controllers of a group: its limit, its use, its statistics, and which of them can be freed
    "": ("max", "current", "stat", "inactive_file"),  # version 2
    "memory": ("limit_in_bytes", "usage_in_bytes", "stat", "total_inactive_file"),  # version 1
}
_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # on x86, and on ARM

KEEP_FREED_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 60), "MALLOC_ARENA_MAX": "1"}
"""Environment of a process that keeps the memory that it has freed, and uses it again (mallopt(3); for glibc).

A training step frees its activations, hundreds of megabytes, and allocates as many in the next one. glibc would return
each block of more than 32 MiB at once, and the system clears a new one page by page (docs/results.md has what that
costs). There is one arena, because those of threads are cut into heaps of 64 MiB, which larger blocks do not fit into.
"""


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
    """Return how much memory processes may still take: of the machine, and of this process's control groups (Linux)."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError):  # another system than Linux
        return memory_bytes()
    return min([free, *_free_of_groups()])


def _free_of_groups() -> Iterator[int]:
    """Yield what each control group around this process leaves; memory that caches files counts as free."""
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except OSError:
        return
    for _, controllers, own in (line.split(":", 2) for line in lines):
        if (names := _GROUP_FILES.get(controllers)) is None:
            continue
        own_folder = _GROUPS / controllers / own.strip("/")
        for folder in (own_folder, *own_folder.parents):
            try:
                limit, used, statistics = ((folder / f"memory.{name}").read_text().strip() for name in names[:3])
            except OSError:  # above the groups; in a container, a path may also begin above its root
                continue
            if limit != "max":
                cached = re.search(rf"^{names[3]} (\d+)$", statistics, re.MULTILINE)
                yield max(0, int(limit) - int(used) + (int(cached[1]) if cached else 0))


def python_version() -> str:
    return platform.python_version()


def version_of(library: str) -> str:
    """Return the version of an installed library, "unknown" where it is not there under this name."""
    try:
        return version(library)
    except PackageNotFoundError:  # as of onnxruntime, which onnxruntime-gpu brings
        return "unknown"
