"""Preemption: how a run learns that a node is drained, or that one of its workers has to end.

A worker has to end when it gets SIGTERM, or when Ray restarts all workers because a node has joined.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

from cluster.guards import has_cluster

_DRAIN_POLL_S = 2.0
_LAST_STEP_S = 300  # enough for a step and a checkpoint
_preempted = threading.Event()  # this process has to end
_idle = threading.Event()  # no training is in progress in this process
_idle.set()


class DrainedNodes:
    """The nodes that the cluster is about to take away: a spot machine's notice, ``ray drain-node``, scaling down."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._asked = 0.0

    def new(self) -> list[str]:
        """Return the names of nodes not returned before; ask a cluster every other second at most."""
        if not has_cluster() or time.monotonic() - self._asked < _DRAIN_POLL_S:
            return []
        import ray

        self._asked = time.monotonic()
        found = set(ray._private.state.state.get_draining_nodes()) - self._known
        self._known |= found
        return sorted(node["NodeName"] for node in ray.nodes() if node["NodeID"] in found)


def handle_sigterm() -> None:
    """Let a first SIGTERM to this process only set what ``is_preempted`` returns; a second one ends the process."""
    signal.signal(signal.SIGTERM, _on_sigterm)


def _on_sigterm(signum: int, frame: object) -> None:
    if _preempted.is_set():
        os._exit(128 + signum)
    _preempted.set()


def is_preempted() -> bool:
    """Return whether this process has to end."""
    return _preempted.is_set()


@contextlib.contextmanager
def training_in_progress() -> Iterator[None]:
    """Mark the time during which this process trains."""
    _idle.clear()
    try:
        yield
    finally:
        _idle.set()


def is_training() -> bool:
    """Return whether another thread of this process trains."""
    return not _idle.is_set()


def preempt() -> None:
    """Tell this process to end, and wait until its training has ended."""
    _preempted.set()
    _idle.wait(_LAST_STEP_S)
