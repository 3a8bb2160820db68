"""Pseudo-labels: which images an encoder finds alike."""

from __future__ import annotations

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

_BATCH = 4096


def cluster_labels(features: Tensor, num_clusters: int, seed: int) -> np.ndarray:
    """k-means of features, each dimension brought to unit variance first.

    Args:
        features: float32 ``[n, D]``, n >= num_clusters; on the CPU they are overwritten, for they may be most of what
            fits in memory.

    Returns:
        int32 ``[n]`` in [0, num_clusters), the same for the same seed.

    Source: Sculley, "Web-Scale K-Means Clustering", 2010 (in batches; scikit-learn's, with k-means++ starts).
    """
    x = features.cpu().numpy()  # [n, D]
    # sums in float64, a buffer at a time: of a dimension that is constant nothing is left that could be blown up
    x -= x.mean(0, dtype=np.float64)
    x /= np.sqrt(np.einsum("nd,nd->d", x, x, dtype=np.float64) / len(x)).clip(min=1e-12)
    means = MiniBatchKMeans(num_clusters, batch_size=_BATCH, n_init=3, random_state=seed % 2**32)
    labels: np.ndarray = means.fit_predict(x).astype(np.int32)
    return labels
