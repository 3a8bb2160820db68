"""A worker that waits in the middle of a run, so that a test can act there on a machine of any speed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from unittest import mock

from cluster import worker
from ssl_dist.training.engine import Engine

_FREE_STEPS = 5
_GO = "go"


def let_go(run: Path) -> None:
    """Let the run's workers continue, these and those that are started later."""
    (run / _GO).touch()


def train(settings: dict[str, Any]) -> dict[str, float]:
    """Train like ``cluster.worker.train``, but wait after the first five steps until the test lets go."""
    step, done = Engine.step, 0

    def held_step(*arguments: Any) -> Any:
        nonlocal done
        while done == _FREE_STEPS and not (Path(settings["directory"]) / _GO).exists():
            time.sleep(0.01)
        done += 1
        return step(*arguments)

    with mock.patch.object(Engine, "step", held_step):
        return worker.train(settings)
