"""Settings of the classifiers of frozen features, and what they need of labels. They are checked without torch."""

from __future__ import annotations

import math
from collections.abc import Sized
from typing import Literal

import numpy as np

from ssl_dist.errors import ConfigError

Distance = Literal["cosine", "euclidean"]
DISTANCES = ("cosine", "euclidean")

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Penalties of a linear probe that a sweep tries."""
HELD_OUT = 0.2
"""Share of the training images on which it chooses."""


def expect_voters(bank_labels: Sized, k: int, temperature: float | None = 0.1) -> None:
    """Refuse a kNN of more voters than the bank ``[n]`` has images, or of no temperature.

    Raises:
        ConfigError: k or the temperature is out of range.
    """
    if temperature is not None and not 0 < temperature < math.inf:
        raise ConfigError(f"temperature {temperature}: it must be greater than 0, and finite")
    if not 1 <= k <= len(bank_labels):
        raise ConfigError(f"k {k}: the bank has {len(bank_labels)} labelled images, k is one of 1..{len(bank_labels)}")


def expect_two_classes(train_labels: np.ndarray, l2: float | None) -> None:
    """Refuse a linear probe that has nothing to tell apart, or no penalty. An l2 of None is one that is chosen.

    Raises:
        ConfigError: the training labels ``[n]`` have fewer than two classes, there are too few of them to choose a
            penalty by, or l2 <= 0.
    """
    classes, counts = np.unique(train_labels, return_counts=True)
    if len(classes) < 2:
        raise ConfigError("linear probe: the training images have fewer than two classes")
    if l2 is None and counts.max() < 2:
        raise ConfigError(
            "linear probe: each class has one labelled image only, so none can be held out to choose the penalty on:"
            " label more images (`evaluate linear` also takes a penalty, --l2 1e-3)"
        )
    if l2 is not None and not 0 < l2 < math.inf:
        raise ConfigError(f"l2 {l2}: it must be greater than 0, and finite")
