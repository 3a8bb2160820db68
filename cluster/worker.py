"""What one Ray Train worker runs: the science, with Ray as its requests."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cluster.preemption import told, training
from cluster.run_directory import RunDirectory
from ssl_dist.collectives import World
from ssl_dist.config import RunConfig
from ssl_dist.errors import Preempted, SslDistError

_OURS = ("cluster", "ssl_dist")  # packages whose news is logged; of others, warnings

log = logging.getLogger(__name__)


def train(settings: dict[str, Any]) -> dict[str, float]:
    """Entry point of TorchTrainer.

    Whatever ends one worker, Ray kills the others with it and starts all anew from the newest checkpoint. An error
    raised on purpose would only come again: it is left in the run directory for the driver, and the workers that are
    started next find it and end at once.

    Args:
        settings: ``config``, the run's config as plain values; ``directory``, of the run; ``here``: this is the only
            worker, and Ray Train did not start it.
    """
    from ssl_dist.training.loop import StopRequests, pretrain

    config = RunConfig.from_tree(settings["config"], "the run's config")
    run = RunDirectory(Path(settings["directory"]))
    rank = World.current().rank
    if run.read_error():
        return {}
    torch.set_num_threads(max(1, int(config.cluster.cpus_per_worker)))
    world = World.current(_gpu(settings["here"]) if config.cluster.gpu else None)
    requests = StopRequests(
        stop=lambda: rank == 0 and run.stop_asked(), save=lambda: rank == 0 and run.save_asked(), preempted=told
    )
    with training(), _logging_to(run.path / f"worker-{rank}.log"):
        log.info("worker %d: process %d on %s", rank, os.getpid(), socket.gethostname())
        try:
            return pretrain(config, run.path, world, requests)
        except Preempted:  # Ray starts all anew
            log.warning("worker %d leaves its place", rank)
            raise
        except SslDistError as error:
            run.write_error(error, final=rank == 0)
            raise
        except Exception:
            log.exception("worker %d failed", rank)
            raise


def _gpu(here: bool) -> torch.device:
    """Untested without a GPU."""
    if here:
        return torch.device("cuda")
    import ray.train.torch

    device: torch.device = ray.train.torch.get_device()
    return device


@contextlib.contextmanager
def _logging_to(file: Path) -> Iterator[None]:
    handler = logging.FileHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or record.name.partition(".")[0] in _OURS)
    logging.getLogger().addHandler(handler)
    for package in _OURS:
        logging.getLogger(package).setLevel(logging.INFO)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
