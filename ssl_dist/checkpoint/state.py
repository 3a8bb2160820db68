"""The tensors of a checkpoint."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class State(NamedTuple):
    """Whole tensors, independent of the number of workers.

    Attributes:
        model: parameters and buffers by name.
        optimizer: optimizer state by ``parameter name/key``.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
