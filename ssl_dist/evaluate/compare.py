"""Compare a run's encoder with the random weights that it started from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssl_dist.errors import StoreError
from ssl_dist.evaluate.features import encoder_of, extract, fastest_device, labels_by_name, open_labelled
from ssl_dist.settings import CheckpointChoice

Score = Callable[[Tensor, Tensor, Tensor, Tensor], float]
"""(training features, their labels, test features, their labels) -> accuracy."""
ProgressCallback = Callable[[int, int], None]
"""(images done, images in all) -> None."""
Check = Callable[[Tensor], None]
"""Labels of the training images -> None; it raises ConfigError where a score cannot be computed with them."""


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
    check: Check = lambda labels: None,
    checkpoint: CheckpointChoice = "newest",
    progress: ProgressCallback | None = None,
) -> Comparison:
    """Score a run's encoder, and the random weights of its seed, on the labelled images of two stores.

    Args:
        run, checkpoint: as ``trained_method`` takes them.
        check: called before anything is embedded.
        progress: called with (images embedded, images in all).

    Raises:
        RunError: no usable checkpoint.
        StoreError: no labels or of one class only, different classes (see ``labels_by_name``), or images of another
            size than the run's.
        ConfigError: of ``check``.
    """
    backbone, config, step = encoder_of(run, checkpoint)
    train_store = open_labelled(train, config.data, config.facts.image_shape)
    test_store = open_labelled(test, config.data, train_store.image_shape)
    stores = (train_store, test_store)
    stored_labels = (train_store.labels, labels_by_name(train_store, test_store))
    ids = [np.flatnonzero(stored >= 0) for stored in stored_labels]
    labels = [torch.from_numpy(stored[rows]).long() for stored, rows in zip(stored_labels, ids, strict=True)]
    check(labels[0])
    if len(labels[0].unique()) < 2:
        raise StoreError(f"{train_store.name} has labelled images of one class only, and every answer would be right")
    device, done, accuracies = fastest_device(), 0, []

    def count(images: int) -> None:
        nonlocal done
        done += images
        if progress:
            progress(done, 2 * sum(map(len, ids)))

    for encoder in (backbone.to(device), config.initial_method().backbone.to(device)):
        features = [
            extract(encoder, store, rows, device, config, count).cpu() for store, rows in zip(stores, ids, strict=True)
        ]
        accuracies.append(score(features[0], labels[0], features[1], labels[1]))
    return Comparison(accuracies[0], accuracies[1], step, len(ids[0]), len(ids[1]))
