"""Compare a run's encoder with the random weights that it started from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ssl_dist.checkpoint import Checkpoint, locate
from ssl_dist.errors import StoreError
from ssl_dist.evaluate.labelled import labels_by_name, open_labelled, warn_of_same_images
from ssl_dist.settings import CheckpointChoice
from ssl_dist.store import ImageStore

if TYPE_CHECKING:
    from torch import Tensor

Score = Callable[["Tensor", "Tensor", "Tensor", "Tensor"], float]
"""(training features, their labels, test features, their labels) -> accuracy."""
ProgressCallback = Callable[[int, int], None]
"""(images done, images in all) -> None."""
Check = Callable[[np.ndarray], None]
"""Labels of the training images ``[n]`` -> None; it raises ConfigError where a score cannot be computed with them."""


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
    found = locate(run, checkpoint)
    train_store = open_labelled(train, found.config.data, found.config.facts.image_shape)
    test_store = open_labelled(test, found.config.data, train_store.image_shape)
    warn_of_same_images(train_store, test_store)
    stores, labels = (train_store, test_store), (train_store.labels, labels_by_name(train_store, test_store))
    known = labels[0][labels[0] >= 0]
    check(known)
    if len(np.unique(known)) < 2:
        raise StoreError(f"{train_store.name} has labelled images of one class only, and every answer would be right")
    accuracies = _accuracies(found, stores, labels, score, progress)
    return Comparison(*accuracies, found.step, len(known), int((labels[1] >= 0).sum()))


def _accuracies(
    found: Checkpoint,
    stores: Sequence[ImageStore],
    labels: Sequence[np.ndarray],
    score: Score,
    progress: ProgressCallback | None,
) -> tuple[float, float]:
    """Return the accuracy of a checkpoint's backbone and that of random weights."""
    import torch  # here: a mistake is told before

    from ssl_dist.evaluate.features import extract, fastest_device, load_method

    ids = [np.flatnonzero(some >= 0) for some in labels]
    truth = [torch.from_numpy(some[rows]).long() for some, rows in zip(labels, ids, strict=True)]
    config, device, done = found.config, fastest_device(), 0

    def count(images: int) -> None:
        nonlocal done
        done += images
        if progress:
            progress(done, 2 * sum(map(len, ids)))

    def accuracy(encoder: torch.nn.Module) -> float:
        encoder.to(device)
        features = [
            extract(encoder, store, rows, device, config, count).cpu() for store, rows in zip(stores, ids, strict=True)
        ]
        return score(features[0], truth[0], features[1], truth[1])

    return accuracy(load_method(found).backbone), accuracy(config.initial_method().backbone)
