"""What a checkpoint holds of a run: whole tensors, independent of the number of workers."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class State(NamedTuple):
    """Whole tensors, independent of the number of workers: parameters and buffers by name, and optimizer state by
    ``parameter name/key``."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
