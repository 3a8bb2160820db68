"""How a run hears that it has to leave a place: a node that Ray drains, a worker that gets SIGTERM, or that is asked to
go since a node has joined and the group is made anew."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

_DRAIN_POLL_S = 2.0
_STEP_S = 300  # in which a worker that is asked to leave has ended its step, and its checkpoint is written
_told = threading.Event()  # this process has to go
_idle = threading.Event()
_idle.set()


class DrainedNodes:
    """Nodes that the cluster is about to take away (a spot machine's notice, ``ray drain-node``, scaling down)."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._asked = 0.0

    def new(self) -> list[str]:
        """Names of those that were not named before; asks the cluster every other second at most."""
        import ray

        if time.monotonic() - self._asked < _DRAIN_POLL_S:
            return []
        self._asked = time.monotonic()
        found = set(ray._private.state.state.get_draining_nodes()) - self._known
        self._known |= found
        return sorted(node["NodeName"] for node in ray.nodes() if node["NodeID"] in found)


def heed_sigterm() -> None:
    """From now on a first SIGTERM to this process only sets what ``told`` returns; a second ends it."""
    signal.signal(signal.SIGTERM, _on_sigterm)


def _on_sigterm(signum: int, frame: object) -> None:
    if _told.is_set():
        os._exit(128 + signum)
    _told.set()


def told() -> bool:
    """Has this process been told to go?"""
    return _told.is_set()


@contextlib.contextmanager
def training() -> Iterator[None]:
    """Around what ``leave`` waits for."""
    _idle.clear()
    try:
        yield
    finally:
        _idle.set()


def is_training() -> bool:
    """Is it going on, in another thread of this process?"""
    return not _idle.is_set()


def leave() -> None:
    """Tell this process to go, and wait until its training has ended."""
    _told.set()
    _idle.wait(_STEP_S)
