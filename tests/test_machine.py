"""What a process does with memory that it has freed."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from ssl_dist.machine import KEEP_FREED_MEMORY

# page faults (of 4 KiB or more) while a thread allocates, writes and frees blocks of 8, 64 and 128 MiB, ten times
_SCRIPT = """
import resource, threading
import numpy as np
def measure():
    faults = []
    for _ in range(11):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [np.full(n, 1.0) for n in (1 << 23, 1 << 24, *[1 << 20] * 16)]
        del blocks
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    print(sum(faults[1:]))
thread = threading.Thread(target=measure)
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_memory_that_a_thread_has_freed_is_used_again() -> None:
    def faults(environment: dict[str, str]) -> int:
        command = [sys.executable, "-c", _SCRIPT]
        return int(subprocess.run(command, env=environment, capture_output=True, check=True, text=True).stdout)

    assert faults({}) > 2000
    assert faults(KEEP_FREED_MEMORY) < 200
