"""Compare a run's encoder with the random weights that it started from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssl_dist.errors import StoreError
from ssl_dist.evaluate.features import encoder_of, expect_same_classes, extract, fastest_device, open_labelled

Score = Callable[[Tensor, Tensor, Tensor, Tensor], float]
"""(training features, their labels, test features, their labels) -> accuracy."""
ProgressCallback = Callable[[int, int], None]
"""(images done, images in all) -> None."""


class Comparison(NamedTuple):
    """Accuracies in [0, 1] of the trained encoder and of its random start."""

    trained: float
    random: float
    step: int
    num_train: int
    num_test: int


def compare(
    run: Path,
    train: str | Path,
    test: str | Path,
    score: Score,
    *,
    needs: int = 1,
    progress: ProgressCallback | None = None,
) -> Comparison:
    """Score a run's newest encoder, and the weights it started from, on the labelled images of two stores.

    Args:
        needs: labelled images of ``train`` that the score needs at least.
        progress: called with (images embedded, images in all).

    Raises:
        RunError: no usable checkpoint.
        StoreError: no labels or too few, class names that differ, or images of another size than the run's.
    """
    backbone, config, step = encoder_of(run)
    train_store = open_labelled(train, config.data, config.facts.image_shape)
    test_store = open_labelled(test, config.data, train_store.image_shape)
    expect_same_classes(train_store, test_store)
    stores = (train_store, test_store)
    ids = [np.flatnonzero(store.labels >= 0) for store in stores]
    labels = [torch.from_numpy(store.labels[rows]).long() for store, rows in zip(stores, ids, strict=True)]
    if len(ids[0]) < needs:
        raise StoreError(f"{train_store.name} has {len(ids[0])} labelled images, {needs} are needed")
    device, done, accuracies = fastest_device(), 0, []

    def count(images: int) -> None:
        nonlocal done
        done += images
        if progress:
            progress(done, 2 * sum(map(len, ids)))

    for encoder in (backbone.to(device), config.initial_method().backbone.to(device)):
        features = [extract(encoder, store, rows, device, count).cpu() for store, rows in zip(stores, ids, strict=True)]
        accuracies.append(score(features[0], labels[0], features[1], labels[1]))
    return Comparison(accuracies[0], accuracies[1], step, len(ids[0]), len(ids[1]))
