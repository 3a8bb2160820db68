"""Weights & Biases: the run goes to its server where a key is known, and otherwise to RUN/wandb, to be sent later."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import wandb

from ssl_dist.config import RunConfig
from ssl_dist.training.boards.board import Board, hyperparameters, remembered_id

log = logging.getLogger(__name__)


class Wandb(Board):
    """Writes a run of the project ``WANDB_PROJECT``, or ssl_dist.

    A resumed run continues under its number. The server keeps the first values of a step and takes no others of it;
    a run that is repeated from an earlier step has the same ones.
    """

    def __init__(self, run: Path, config: RunConfig, first_step: int) -> None:
        no_key = "WANDB_MODE" not in os.environ and not wandb.login(prompt=False)
        if no_key:
            log.info("Weights & Biases has no key: send the run later by: wandb sync %s/wandb/offline-run-*", run)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "ssl_dist"),
            dir=run,
            name=run.name,
            id=remembered_id(run, "wandb", lambda: uuid.uuid4().hex[:12]),
            resume="allow",
            mode="offline" if no_key else None,  # None: what WANDB_MODE says, or online
            config=hyperparameters(config),
            # the command line may hold the key of a bucket, and the output of a worker is in its own log
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                save_code=False,
                x_disable_meta=True,
                x_save_requirements=False,
            ),
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def text(self, step: int, tag: str, text: str) -> None:
        self._run.summary[tag] = f"step {step:,}: {text}"

    def picture(self, step: int, tag: str, pixels: np.ndarray) -> None:
        self._run.log({tag: wandb.Image(pixels)}, step=step)

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
