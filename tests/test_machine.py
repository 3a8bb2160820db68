"""What a process does with memory that it has freed."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# page faults (of 4 KiB) while blocks of 64 and 128 MiB are allocated, written and freed, ten times
_SCRIPT = """
import resource
import numpy as np
from ssl_dist.machine import keep_freed_memory
if {keeps}:
    keep_freed_memory()
faults = []
for _ in range(11):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [np.full(1 << 23, 1.0), np.full(1 << 24, 1.0)]
    del blocks
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sum(faults[1:]))
"""


def faults(keeps: bool, **environment: str) -> int:
    command = [sys.executable, "-c", _SCRIPT.format(keeps=keeps)]
    return int(subprocess.run(command, env=environment, capture_output=True, check=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_memory_that_was_freed_is_used_again_unless_the_environment_says_otherwise() -> None:
    pages = 10 * (192 << 20) // 4096
    assert faults(keeps=False) > pages / 1000  # fewer than one a page where the system has large pages
    assert faults(keeps=True) < 100
    assert faults(keeps=True, MALLOC_MMAP_THRESHOLD_="65536") > pages / 1000
