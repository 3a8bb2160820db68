"""Predictions of a trained classifier, and the most confident of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor, nn

from ssl_dist.checkpoint import Checkpoints
from ssl_dist.errors import RunError
from ssl_dist.evaluate.features import extract, fastest_device
from ssl_dist.store import ImageStore


def predict(run: Path, store: ImageStore, ids: np.ndarray) -> Tensor:
    """Classify whole images by a run's newest checkpoint that verifies.

    Returns:
        Probabilities, float32 ``[n, K]``, on the CPU.

    Raises:
        RunError: the run has no checkpoint, or its method has no classifier.
    """
    found = Checkpoints(run).newest()
    if found is None:
        raise RunError(f"{run} holds no checkpoint that verifies")
    method = found.config.initial_method()
    classifier = getattr(method, "classifier", None)
    if not isinstance(classifier, nn.Module):
        raise RunError(
            f"{run} is a run of {found.config.method.name}, which does not classify: give a run of supervised"
        )
    method.load_state_dict(found.load().model)
    device = fastest_device()
    network = nn.Sequential(method.backbone, classifier, nn.Softmax(dim=1)).to(device)
    return extract(network, store, ids, device).cpu()


def most_confident(probabilities: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the ``count`` rows of ``[n, K]`` with the largest probabilities, and their classes; ties go to the first.

    Source: Lee, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method", 2013.
    """
    confidence, classes = probabilities.max(1)
    rows = confidence.argsort(descending=True, stable=True)[:count]
    return rows.numpy(), classes[rows].numpy().astype(np.int32)
