"""Trials that wait in their middle, so that a sweep is not over before a test acts, on a machine of any speed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from unittest import mock

from ssl_dist.training.engine import Engine
from tune import trial

_FREE_STEPS = 5


def run_trial(values: dict[str, Any], *, sweep: dict[str, Any], directory: str) -> None:
    """Run a trial like ``tune.trial.run_trial``, but all except the first wait after five steps to be killed."""
    step, done = Engine.step, 0

    def held_step(*arguments: Any) -> Any:
        nonlocal done
        while done == _FREE_STEPS:
            time.sleep(0.1)
        done += 1
        return step(*arguments)

    try:
        Path(directory).with_name("first-trial").open("x").close()
    except FileExistsError:
        with mock.patch.object(Engine, "step", held_step):
            trial.run_trial(values, sweep=sweep, directory=directory)
    else:
        trial.run_trial(values, sweep=sweep, directory=directory)
