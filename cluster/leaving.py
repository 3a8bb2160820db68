"""How a run hears that a machine is about to go: a node that Ray drains, a worker that gets SIGTERM."""

from __future__ import annotations

import os
import signal
import threading
import time

_DRAIN_POLL_S = 2.0
_sigterm = threading.Event()


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
    """From now on a first SIGTERM to this process only sets what ``sigterm`` returns; a second ends it."""
    signal.signal(signal.SIGTERM, _on_sigterm)


def sigterm() -> bool:
    """Has this process been told to go?"""
    return _sigterm.is_set()


def _on_sigterm(signum: int, frame: object) -> None:
    if _sigterm.is_set():
        os._exit(128 + signum)
    _sigterm.set()
