"""Pseudo-labels of images: clusters of their features, and the most confident predictions of a classifier."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor, nn

from ssl_dist.errors import RunError
from ssl_dist.evaluate.features import ChunkCallback, extract, fastest_device, trained_method
from ssl_dist.settings import CheckpointChoice
from ssl_dist.store import ImageStore

_KMEANS_BATCH = 4096


def cluster_labels(features: Tensor, num_clusters: int, seed: int) -> np.ndarray:
    """Cluster features by k-means, after each dimension is scaled to unit variance.

    Args:
        features: float32 ``[n, D]``, n >= num_clusters. On the CPU they are overwritten: a copy may not fit in memory.

    Returns:
        int32 ``[n]`` in [0, num_clusters), the same for the same seed.

    Source: Sculley, "Web-Scale K-Means Clustering", 2010 (in batches; scikit-learn's, with k-means++ starts).
    """
    from sklearn.cluster import MiniBatchKMeans

    x = features.cpu().numpy()  # [n, D]
    # Sums are float64, so that a constant dimension becomes exactly 0 and no rounding error is scaled up.
    x -= x.mean(0, dtype=np.float64)
    x /= np.sqrt(np.einsum("nd,nd->d", x, x, dtype=np.float64) / len(x)).clip(min=1e-12)
    means = MiniBatchKMeans(num_clusters, batch_size=_KMEANS_BATCH, n_init=3, random_state=seed % 2**32)
    return np.asarray(means.fit_predict(x), dtype=np.int32)


def predict(
    run: Path,
    store: ImageStore,
    ids: np.ndarray,
    checkpoint: CheckpointChoice = "newest",
    count: ChunkCallback | None = None,
) -> Tensor:
    """Classify whole images by one of a run's checkpoints that verifies; ``count`` is called as ``extract`` calls it.

    Returns:
        Probabilities, float32 ``[n, K]``, on the CPU.

    Raises:
        RunError: the run has no checkpoint, or its method has no classifier.
    """
    method, config, _ = trained_method(run, checkpoint)
    classifier = getattr(method, "classifier", None)
    if not isinstance(classifier, nn.Module):
        raise RunError(f"{run} is a run of {config.method.name}, which does not classify: give a run of supervised")
    device = fastest_device()
    network = nn.Sequential(method.backbone, classifier, nn.Softmax(dim=1)).to(device)
    return extract(network, store, ids, device, config, count).cpu()


def most_confident(probabilities: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the ``count`` rows of ``[n, K]`` with the largest probabilities, and their classes; ties go to the first.

    Source: Lee, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method", 2013.
    """
    confidence, classes = probabilities.max(1)
    rows = confidence.argsort(descending=True, stable=True)[:count]
    return rows.numpy(), classes[rows].numpy().astype(np.int32)
