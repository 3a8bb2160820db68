"""How good are frozen features? ``compare`` asks it of a run's encoder and of the random weights it started from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssl_dist.errors import StoreError
from ssl_dist.evaluate.embedding import embedding_statistics
from ssl_dist.evaluate.features import encoder_of, extract, labelled
from ssl_dist.evaluate.knn import knn_accuracy
from ssl_dist.evaluate.linear import linear_accuracy

__all__ = [
    "Comparison",
    "compare",
    "embedding_statistics",
    "encoder_of",
    "extract",
    "knn_accuracy",
    "labelled",
    "linear_accuracy",
]

Score = Callable[[Tensor, Tensor, Tensor, Tensor], float]  # bank features, labels, test features, labels -> accuracy


class Comparison(NamedTuple):
    """Accuracies in [0, 1] of the trained encoder and of its random start."""

    trained: float
    random: float
    step: int
    num_train: int
    num_test: int


def compare(run: Path, train: Path, test: Path, score: Score) -> Comparison:
    """Score a run's newest encoder, and the weights it started from, on the labelled images of two stores.

    Raises:
        RunError: no usable checkpoint. StoreError: no labels, or sizes or class names that differ.
    """
    backbone, config, step = encoder_of(run)
    train_store = labelled(train)
    test_store = labelled(test, train_store.image_shape)
    if train_store.class_names != test_store.class_names:
        raise StoreError(
            f"{train} and {test} have different classes: {train_store.class_names} and {test_store.class_names}"
        )
    stores = (train_store, test_store)
    ids = [np.flatnonzero(store.labels >= 0) for store in stores]
    labels = [torch.from_numpy(store.labels[rows]).long() for store, rows in zip(stores, ids, strict=True)]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    accuracies = []
    for encoder in (backbone, config.initial_method().backbone):
        encoder.to(device)
        features = [extract(encoder, store, rows, device).cpu() for store, rows in zip(stores, ids, strict=True)]
        accuracies.append(score(features[0], labels[0], features[1], labels[1]))
    return Comparison(accuracies[0], accuracies[1], step, len(ids[0]), len(ids[1]))
