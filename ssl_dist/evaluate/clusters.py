"""Pseudo-labels: which images an encoder finds alike."""

from __future__ import annotations

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

_BATCH = 4096


def cluster_labels(features: Tensor, num_clusters: int, seed: int) -> np.ndarray:
    """k-means of features, each dimension brought to unit variance first.

    Args:
        features: ``[n, D]``, n >= num_clusters.

    Returns:
        int32 ``[n]`` in [0, num_clusters).

    Source: Sculley, "Web-Scale K-Means Clustering", 2010 (in batches; scikit-learn's, with k-means++ starts).
    """
    x = features.double().cpu()
    x = (x - x.mean(0)) / x.std(0).clamp(min=1e-12)
    means = MiniBatchKMeans(num_clusters, batch_size=_BATCH, n_init=3, random_state=seed % 2**32)
    labels: np.ndarray = means.fit_predict(x.numpy()).astype(np.int32)
    return labels
