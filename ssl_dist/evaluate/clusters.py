"""Clusters of features, as pseudo-labels of images."""

from __future__ import annotations

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

_BATCH = 4096


def cluster_labels(features: Tensor, num_clusters: int, seed: int) -> np.ndarray:
    """Cluster features by k-means, after each dimension is scaled to unit variance.

    Args:
        features: float32 ``[n, D]``, n >= num_clusters. On the CPU they are overwritten: a copy may not fit in memory.

    Returns:
        int32 ``[n]`` in [0, num_clusters), the same for the same seed.

    Source: Sculley, "Web-Scale K-Means Clustering", 2010 (in batches; scikit-learn's, with k-means++ starts).
    """
    x = features.cpu().numpy()  # [n, D]
    # Sums are float64, so that a constant dimension becomes exactly 0 and no rounding error is scaled up.
    x -= x.mean(0, dtype=np.float64)
    x /= np.sqrt(np.einsum("nd,nd->d", x, x, dtype=np.float64) / len(x)).clip(min=1e-12)
    means = MiniBatchKMeans(num_clusters, batch_size=_BATCH, n_init=3, random_state=seed % 2**32)
    labels: np.ndarray = means.fit_predict(x).astype(np.int32)
    return labels
