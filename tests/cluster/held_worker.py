"""A worker that waits in the middle of a run, so that a test can act there on a machine of any speed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from unittest import mock

from cluster import preemption
from cluster.worker import train as _train
from ssl_dist.training.engine import Engine

_FREE_STEPS = 5
_GO = "go"


def let_go(run: Path) -> None:
    """Let the run's workers continue, these and those that are started later."""
    (run / _GO).touch()


def train(settings: dict[str, Any]) -> dict[str, float]:
    """Train like ``cluster.worker.train``, but wait after five steps until the test lets go or preempts a worker."""
    (step, done), run = (Engine.step, 0), Path(settings["directory"])

    def held_step(*arguments: Any) -> Any:
        nonlocal done
        while done == _FREE_STEPS and not (run / _GO).exists():
            if preemption.is_preempted():
                let_go(run)
            time.sleep(0.01)
        done += 1
        return step(*arguments)

    with mock.patch.object(Engine, "step", held_step):
        return _train(settings)
