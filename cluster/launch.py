"""Drive a run: workers in a thread beside, the bar, a good end on Ctrl-C, one line for what went wrong.

Also the script of `ray submit CLUSTER.yaml cluster/launch.py -- RECIPE ...`, which Ray copies to the head and runs:
its arguments are those of `ssl-dist pretrain`, or begin with another command (`tune`, `doctor`).
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from cluster.connect import Background, connected, reason_of, trainer
from cluster.preemption import DrainedNodes
from cluster.run_directory import RunDirectory
from ssl_dist.commands.table import COMMANDS
from ssl_dist.config import RunConfig
from ssl_dist.errors import Interrupted, SslDistError

_POLL_S = 0.25


def launch(config: RunConfig, run: RunDirectory, console: Console, go_on: str | None = None) -> dict[str, Any]:
    """Run to the end, or until Ctrl-C.

    Args:
        go_on: what goes on where this was stopped, as messages name it. Default: the line that resumes this run.

    Returns:
        Rank 0's last metrics and ``step``.

    Raises:
        Interrupted: stopped by Ctrl-C, with a checkpoint.
        ClusterError: Ray cannot be reached, or has not what ``config.cluster`` asks for.
        SslDistError: what ended the workers.
    """
    go_on = go_on or resume_command(run)
    with connected(config.cluster) as started_here, _interrupts(run, console, go_on) as interrupts:
        if started_here:
            console.print(f"local Ray, {config.cluster.workers.max} worker(s)", highlight=False)
        outcome = fit(config, run)
        _follow(outcome, run, console)
    if error := ending(outcome, run, go_on):
        raise error
    if interrupts.asked:
        raise Interrupted(f"stopped; go on with: {go_on}")
    metrics: dict[str, Any] = outcome.result
    return metrics


def resume_command(run: RunDirectory) -> str:
    """The line that goes on with a run."""
    return f"ssl-dist pretrain --resume {shlex.quote(str(run.path))}"


def fit(config: RunConfig, run: RunDirectory, *, here: bool = False) -> Background:
    """The run's workers, from a thread; its result are rank 0's last metrics.

    Args:
        here: the only worker is this process, without Ray Train: it must have what a worker needs.
    """
    from cluster.worker import train

    settings = {"config": config.model_dump(mode="json"), "directory": str(run.path), "here": here}
    if here:
        thread = Background(lambda: train(settings))
    else:
        work = trainer(train, settings, config.cluster, run.path)
        thread = Background(lambda: work.fit().return_value or {})
    thread.start()
    return thread


def ending(outcome: Background, run: RunDirectory, go_on: str | None = None) -> SslDistError | None:
    """What ended the workers, if it was an error; ``go_on`` as in ``launch``."""
    if error := run.read_error():
        return error
    if outcome.error:
        reason = reason_of(outcome.error)
        return SslDistError(f"{reason}: see {run.path}/worker-*.log, then {go_on or resume_command(run)}")
    return None


def _follow(outcome: Background, run: RunDirectory, console: Console) -> None:
    """The bar, until the fit ends."""
    from ssl_dist.training.monitor import ProgressBar

    leaving = DrainedNodes()
    with ProgressBar(run.path, console) as bar:
        while outcome.is_alive():
            outcome.join(timeout=_POLL_S)
            bar.update()
            if nodes := leaving.new():
                run.ask_to_save()
                console.print(f"node {', '.join(nodes)} is about to leave: a checkpoint is written", highlight=False)


class _Interrupts:
    """The first Ctrl-C (or SIGTERM) asks the workers to stop, the second kills them."""

    def __init__(self, run: RunDirectory, console: Console) -> None:
        self.asked = False
        self._run, self._console = run, console

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._run.ask_to_stop()
        self._console.print(
            "stopping after this step, with a checkpoint; Ctrl-C again to stop at once", highlight=False
        )


@contextlib.contextmanager
def _interrupts(run: RunDirectory, console: Console, go_on: str) -> Iterator[_Interrupts]:
    handler = _Interrupts(run, console)
    if threading.current_thread() is not threading.main_thread():
        yield handler  # signals are the main thread's
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield handler
    except KeyboardInterrupt:
        raise Interrupted(f"stopped at once; the newest checkpoint goes on with: {go_on}") from None
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def on_the_head(arguments: list[str]) -> list[str]:
    """The command line that runs there, beside the Python that has this package."""
    given = arguments if arguments and arguments[0] in COMMANDS else ["pretrain", *arguments]
    return [str(Path(sys.executable).with_name("ssl-dist")), *given]


if __name__ == "__main__":
    os.environ.setdefault("RAY_ADDRESS", "auto")
    command = on_the_head(sys.argv[1:])
    os.execv(command[0], command)
