"""Checks of a cluster, run on its own workers."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from cluster.connect import connected, trainer
from ssl_dist.config import ClusterConfig
from ssl_dist.errors import ClusterError
from ssl_dist.exactness import Finding


def exactness(cluster: ClusterConfig, shared: Path) -> list[Finding]:
    """The world-size battery of ``ssl_dist.exactness`` on ``cluster.workers`` workers.

    Args:
        shared: a folder that all nodes see; what is written there is removed.

    Raises:
        ClusterError: Ray cannot be reached, has no room for the workers, or a worker failed.
    """
    from ray.train import TrainingFailedError

    shared.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="doctor-", dir=shared.absolute()))
    try:
        with connected(cluster):
            found = trainer(_examine, {"gpu": cluster.gpu}, cluster, directory).fit().return_value
    except TrainingFailedError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ClusterError(f"the workers of the battery failed: {reason}") from None
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return [Finding(*values) for values in found]


def _examine(settings: dict[str, Any]) -> list[tuple[Any, ...]]:
    """On every worker; rank 0's is what comes back, as plain values."""
    import ray.train.torch
    import torch

    from ssl_dist.collectives import World
    from ssl_dist.exactness import examine

    device = ray.train.torch.get_device() if settings["gpu"] else torch.device("cpu")
    return [tuple(finding) for finding in examine(World.current(device))]
