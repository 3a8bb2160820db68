"""TensorBoard: scalars, views, hyperparameters and sentences, in RUN/tensorboard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from ssl_dist.config import RunConfig
from ssl_dist.training.boards.board import Board, hyperparameters

TENSORBOARD = "tensorboard"


class TensorBoard(Board):
    """Writes event files; a viewer drops what an interrupted run has written of steps after ``first_step``."""

    def __init__(self, run: Path, config: RunConfig, first_step: int) -> None:
        self._writer = SummaryWriter(str(run / TENSORBOARD), purge_step=first_step + 1)
        measured = [config.probe.tag] if config.probe else []
        known = hyperparameters(config)
        experiment, start, self._end = hparams(known, dict.fromkeys([*measured, "train/loss"], 0.0))
        self._summary(experiment)
        self._summary(start)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def text(self, step: int, tag: str, text: str) -> None:
        self._writer.add_text(tag, text, step)

    def picture(self, step: int, tag: str, pixels: np.ndarray) -> None:
        self._writer.add_image(tag, pixels, step, dataformats="HWC")

    def close(self, *, failed: bool) -> None:
        self._summary(self._end)
        self._writer.close()

    def _summary(self, summary: Any) -> None:
        self._writer._get_file_writer().add_summary(summary)
