"""Checks of a cluster, run on its own workers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from cluster.connect import Background, connected, reason_of, trainer
from ssl_dist.config import ClusterConfig
from ssl_dist.errors import Interrupted, SslDistError
from ssl_dist.exactness import Finding


def exactness(cluster: ClusterConfig) -> list[Finding]:
    """The world-size battery of ``ssl_dist.exactness`` on ``cluster.workers`` workers.

    Raises:
        ClusterError: Ray cannot be reached, or has no room for the workers.
        SslDistError: a worker failed.
        Interrupted: Ctrl-C.
    """
    once = cluster.model_copy(update={"max_failures": 0})
    with tempfile.TemporaryDirectory() as folder, connected(once):
        fit = Background(lambda: trainer(_examine, {"gpu": once.gpu}, once, Path(folder) / "doctor").fit().return_value)
        fit.start()
        try:
            while fit.is_alive():
                fit.join(timeout=0.25)
        except KeyboardInterrupt:
            raise Interrupted("stopped: nothing was kept") from None
    if fit.error:
        raise SslDistError(f"the gradients could not be compared: {reason_of(fit.error)}")
    return [Finding(*values) for values in fit.result]


def _examine(settings: dict[str, Any]) -> list[tuple[Any, ...]]:
    """On every worker; rank 0's is what comes back, as plain values."""
    import ray.train.torch
    import torch

    from ssl_dist.collectives import World
    from ssl_dist.exactness import examine

    device = ray.train.torch.get_device() if settings["gpu"] else torch.device("cpu")
    return [tuple(finding) for finding in examine(World.current(device))]
