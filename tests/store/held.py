"""Writers of a store that wait in the middle, for tests of what happens then, however fast or slow the machine is.

They write the first two shards, and wait at the end of each other one until a file named after the store is there.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

_fsync = os.fsync


def let_go(store: Path) -> None:
    """Let writers of the store go on."""
    store.with_suffix(".go").touch()


def fsync(descriptor: int) -> None:
    """Flush a file to disk, in place of ``os.fsync`` in a writer: a shard after the second when it is let go."""
    file = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
    if file.name > ".shard-00002" and _is_shard(file):
        wait_until(file.parent.with_suffix(".go").exists)
    _fsync(descriptor)


def task(*arguments: Any) -> Any:
    """Write a shard, in place of the task of ``cluster.build``."""
    from cluster import build

    with mock.patch.object(os, "fsync", fsync):
        return build._write(*arguments)


def wait_until(happens: Callable[[], Any]) -> Any:
    """Return what is true at last; the test's own timeout ends what never is."""
    while not (found := happens()):
        time.sleep(0.005)
    return found


def writers_of(store: Path) -> set[int]:
    """Return the processes that have a shard of the store open under its temporary name."""
    found = set()
    for process in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # the process has ended meanwhile, or is another user's
            for link in Path("/proc", process, "fd").iterdir():
                with contextlib.suppress(OSError):  # the file was closed meanwhile
                    file = Path(os.readlink(link))
                    if file.parent == store and _is_shard(file):
                        found.add(int(process))
    return found


def _is_shard(file: Path) -> bool:
    return file.name.startswith(".shard-") and ".json." not in file.name
