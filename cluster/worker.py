"""The function that every worker of a run calls: it trains, logs, and leaves errors for the driver."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cluster.preemption import is_preempted, training_in_progress
from cluster.run_directory import RunDirectory
from ssl_dist.checkpoint.room import expect_room
from ssl_dist.collectives import World
from ssl_dist.config import ResolvedConfig
from ssl_dist.errors import Preempted, SslDistError
from ssl_dist.timing import mark

_OURS = ("cluster", "ssl_dist")  # packages whose information is logged; other packages only log warnings

log = logging.getLogger(__name__)


def train(settings: dict[str, Any]) -> dict[str, float]:
    """Train as one of a run's workers.

    When one worker ends early, the others are killed and all start again from the newest checkpoint. An error raised on
    purpose would only repeat itself: it is written to the run directory for the driver, and the workers that start next
    find it there and end at once.

    Args:
        settings: ``config``, the run's config as plain values; ``directory``, the run's directory; ``here``, whether
            this is the only worker and Ray Train did not start it.

    Returns:
        The last metrics and ``step``; nothing where an earlier start left an error.
    """
    from ssl_dist.training.loop import StopRequests, pretrain

    mark("modules imported")
    config = ResolvedConfig.from_tree(settings["config"], "the run's config")
    run = RunDirectory(Path(settings["directory"]))
    rank = World.current().rank
    if run.read_error():
        return {}
    torch.set_num_threads(max(1, int(config.cluster.cpus_per_worker)))
    world = current_world(config.cluster.gpu, here=settings["here"])
    requests = StopRequests(
        stop=lambda: rank == 0 and run.stop_asked(), save=lambda: rank == 0 and run.save_asked(), preempted=is_preempted
    )
    if settings["here"]:
        _expect_room(config, run)
    with training_in_progress(), _logging_to(run.path / f"worker-{rank}.log"):
        log.info("worker %d: process %d on %s", rank, os.getpid(), socket.gethostname())
        try:
            return pretrain(config, run.path, world, requests)
        except Preempted:  # all workers start again
            log.warning("worker %d was preempted", rank)
            raise
        except SslDistError as error:
            run.write_error(error, final=rank == 0)
            raise
        except Exception:
            log.exception("worker %d failed", rank)
            raise


def _expect_room(config: ResolvedConfig, run: RunDirectory) -> None:
    """Leave an error or a warning for the driver where the disk has no room, before the run writes anything."""
    try:
        expect_room(run.path, [config], warn=run.write_warning)
    except SslDistError as error:
        run.write_error(error, final=True)
        raise


def current_world(gpu: bool, *, here: bool = False) -> World:
    """Return this worker's rank among the workers, with its device; ``here`` as in ``train``."""
    if not gpu:
        return World.current()
    if here:  # no test runs this, or what follows, without a GPU
        return World.current(torch.device("cuda"))
    import ray.train.torch

    return World.current(ray.train.torch.get_device())


@contextlib.contextmanager
def _logging_to(file: Path) -> Iterator[None]:
    """Log to a file, into which a fault of the process is written too: see ``RunDirectory.read_crash``."""
    handler = logging.FileHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or record.name.partition(".")[0] in _OURS)
    logging.getLogger().addHandler(handler)
    for package in _OURS:
        logging.getLogger(package).setLevel(logging.INFO)
    faulthandler.disable()  # it writes to the log that Ray keeps of this process
    try:
        with file.open("a") as faults:
            faulthandler.enable(faults, all_threads=False)
            yield
    finally:
        faulthandler.enable(2)
        logging.getLogger().removeHandler(handler)
        handler.close()
