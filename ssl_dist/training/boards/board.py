"""What a board is: a place that takes a run's numbers, sentences and pictures."""

from __future__ import annotations

import abc
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ssl_dist.config import RunConfig
from ssl_dist.files import write_text
from ssl_dist.uris import without_secrets


class Board(abc.ABC):
    """A place that draws a run. What it is given with a step was measured after so many steps."""

    @abc.abstractmethod
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Take values by tag."""

    @abc.abstractmethod
    def text(self, step: int, tag: str, text: str) -> None:
        """Take a sentence."""

    @abc.abstractmethod
    def picture(self, step: int, tag: str, pixels: np.ndarray) -> None:
        """Take a picture, uint8 ``[H, W, 3]``."""

    @abc.abstractmethod
    def close(self, *, failed: bool) -> None:
        """Mark the run as ended, by an error or as it should, and write what is left."""


def hyperparameters(config: RunConfig) -> dict[str, bool | int | float | str]:
    """Return settings by dotted key, those of ``monitor.hparams`` or all, as boards take them and without secrets."""
    wanted = config.monitor.hparams
    return {key: _shown(value) for key, value in config.flat().items() if wanted is None or key in wanted}


def _shown(value: Any) -> bool | int | float | str:
    if isinstance(value, str):
        return without_secrets(value)
    return value if isinstance(value, (bool, int, float)) else json.dumps(value)


def remembered_id(run: Path, board: str, make: Callable[[], str]) -> str:
    """Return the number under which a board knows a run: that of its first start, or a new one, which is written."""
    file = run / f"{board}-run-id"
    if not file.exists():
        write_text(file, make())
    return file.read_text(encoding="utf-8")
