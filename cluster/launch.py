"""Launch a run: start its workers, show the progress bar, stop on Ctrl-C, and report an error in one line.

This file is also a script: `ray submit CLUSTER.yaml cluster/launch.py -- RECIPE ...` copies it to the cluster's head
and runs it there. Its arguments are those of `ssl-dist pretrain`, or begin with another command (`tune`, `doctor`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from cluster.connect import Background, failure_reason, ray_with_capacity
from cluster.guards import check_machine
from cluster.lone import LoneWorker, needs_no_ray
from cluster.preemption import DrainedNodes
from cluster.run_directory import RunDirectory
from cluster.trainer import torch_trainer
from ssl_dist.checkpoint.room import expect_room
from ssl_dist.commands.console import say, waiting
from ssl_dist.commands.signals import handled
from ssl_dist.commands.table import COMMANDS
from ssl_dist.config import ResolvedConfig
from ssl_dist.errors import Interrupted, SslDistError
from ssl_dist.settings import ClusterConfig
from ssl_dist.timing import mark

_POLL_S = 0.25

log = logging.getLogger(__name__)


def launch(config: ResolvedConfig, run: RunDirectory, console: Console, resume: str | None = None) -> dict[str, Any]:
    """Train a run to its end, until Ctrl-C, or until ``ssl-dist stop`` asks it to end.

    Args:
        resume: the command that resumes the run, for messages. Default: the one of ``resume_command``.

    Returns:
        Rank 0's last metrics and ``step``.

    Raises:
        Interrupted: the run was stopped, with a checkpoint.
        ClusterError: Ray cannot be reached, or has no room for the workers of ``config.cluster``.
        RunError: the disk has no room for the checkpoints.
        SslDistError: an error ended the workers.
    """
    resume = resume or resume_command(run)
    alone = needs_no_ray(config.cluster)
    if alone:
        check_machine(config.cluster)
        say("one worker, without Ray", console)
    else:  # a worker without Ray looks for room itself, so that this process needs no torch
        with waiting("loading torch", console):
            expect_room(run.path, [config])
        mark("room on the disk checked")
    with contextlib.ExitStack() as stack:
        stack.enter_context(ray_where_needed(config.cluster, console))
        mark("machine checked" if alone else "Ray reached")
        interrupts = stack.enter_context(_interrupts(run, console, resume))
        workers = stack.enter_context(LoneWorker(config.cluster, run)) if alone else start_workers(config, run)
        _show_progress(workers, run, console)
    if error := training_error(workers, run, resume):
        raise error
    metrics: dict[str, Any] = workers.result
    if interrupts.asked or (run.stop_asked() and metrics.get("step", 0) < config.plan().total_steps):
        raise Interrupted(f"stopped; resume with: {resume}")
    return metrics


@contextlib.contextmanager
def ray_where_needed(cluster: ClusterConfig | None, console: Console) -> Iterator[None]:
    """Reach Ray, which takes seconds, once for several runs of these workers; do nothing for runs that need no Ray.

    Args:
        cluster: None where no run is left to do.

    Raises:
        ClusterError: Ray cannot be reached, or has no room for the workers.
    """
    if cluster is None or needs_no_ray(cluster):
        yield
        return
    with contextlib.ExitStack() as stack:
        with waiting("reaching Ray", console):
            started_here = stack.enter_context(ray_with_capacity(cluster))
        if started_here:
            say(f"local Ray, workers: {cluster.workers.max}", console)
        yield


def resume_command(run: RunDirectory) -> str:
    """Return the command line that resumes a run."""
    return f"ssl-dist pretrain --resume {shlex.quote(str(run.path))}"


def start_workers(config: ResolvedConfig, run: RunDirectory, *, here: bool = False) -> Background:
    """Start the run's workers in a thread whose result will be rank 0's last metrics.

    Args:
        here: this process is the only worker, without Ray Train; it must have a worker's resources.
    """
    from cluster.worker import train

    settings = {"config": config.model_dump(mode="json"), "directory": str(run.path), "here": here}
    if here:
        thread = Background(lambda: train(settings))
    else:
        work = torch_trainer(train, settings, config.cluster, run.path)
        thread = Background(lambda: work.fit().return_value or {})
    thread.start()
    return thread


def training_error(workers: Background, run: RunDirectory, resume: str | None = None) -> SslDistError | None:
    """Return the error that ended the workers, if one did; ``resume`` as in ``launch``."""
    if error := run.read_error():
        return error
    if workers.error:
        reason = run.read_crash() or failure_reason(workers.error)
        return SslDistError(f"{reason}: see {run.path}/worker-*.log, then {resume or resume_command(run)}")
    return None


def _show_progress(workers: Background, run: RunDirectory, console: Console) -> None:
    """Show the progress bar until the workers end; ask them for a checkpoint when a node is about to go."""
    from ssl_dist.training.progress_bar import ProgressBar

    drained = DrainedNodes()
    with ProgressBar(run.path, console) as bar:
        while workers.is_alive():
            workers.join(timeout=_POLL_S)
            bar.update()
            run.give_sign_of_life()
            if warning := run.take_warning():
                log.warning("%s", warning)
            if nodes := drained.new():
                run.ask_to_save()
                say(f"node {', '.join(nodes)} is about to go: a checkpoint is written", console)


class _Interrupts:
    """The handler of Ctrl-C, SIGTERM and SIGHUP: the first asks the workers to stop, the second kills them."""

    def __init__(self, run: RunDirectory, console: Console) -> None:
        self.asked = False
        self._run, self._console = run, console

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._run.ask_to_stop()
        say("stopping after the next step, with a checkpoint; Ctrl-C again to stop at once", self._console)


@contextlib.contextmanager
def _interrupts(run: RunDirectory, console: Console, resume: str) -> Iterator[_Interrupts]:
    handler = _Interrupts(run, console)
    try:
        with handled(handler):
            yield handler
    except KeyboardInterrupt:
        raise Interrupted(f"stopped at once; resume from the newest checkpoint with: {resume}") from None


def command_on_head(arguments: list[str]) -> list[str]:
    """Return the `ssl-dist` command line for the script's arguments, in the environment of this Python."""
    given = arguments if arguments and arguments[0] in COMMANDS else ["pretrain", *arguments]
    return [str(Path(sys.executable).with_name("ssl-dist")), *given]


if __name__ == "__main__":
    os.environ.setdefault("RAY_ADDRESS", "auto")
    command = command_on_head(sys.argv[1:])
    os.execv(command[0], command)
