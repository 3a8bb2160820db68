"""Effective ranks of features: how good a representation is, judged without labels.

Both are exponentials of an entropy, between 1 (collapsed) and the number of features; higher is better.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LIDAR_DELTA = 1e-4  # the paper's; it keeps the within-image covariance invertible


def rankme(features: Tensor) -> float:
    """Return RankMe: exp(-sum_k p_k log p_k), p_k = sigma_k / sum sigma, of the features' singular values sigma.

    Args:
        features: ``[n, D]``, not centred, as in the paper; n > D, or the rank cannot be full.

    Source: Garrido et al., "RankMe", arXiv 2210.02885, equations 1 and 2. The paper takes the projection head's
        embeddings or the backbone's features; this package passes the backbone's, which outlive pretraining.
    """
    sigma = torch.linalg.svdvals(features.double())
    return _exp_entropy(sigma)


def lidar(features: Tensor) -> float:
    """Return LiDAR, the effective rank of the linear discriminant matrix of images (classes) and views (samples).

        S_w = mean over images and views of (f - mean_i)(f - mean_i)' + 1e-4 I
        S_b = covariance of the images' means,    LiDAR = exp entropy of the eigenvalues of S_w^-1/2 S_b S_w^-1/2

    Args:
        features: ``[n, q, D]``, q >= 2 augmented views of each of n images. The paper has about 1,000 images of 50
            views; the online probe takes more images and 10 views, which gives higher values (docs/differences.md).

    Source: Thilak et al., "LiDAR", arXiv 2312.04000, section 3.
    """
    features = features.double()
    n, q, dim = features.shape
    means = features.mean(1)  # [n, D]
    within = (features - means[:, None]).flatten(0, 1)
    s_within = within.T @ within / (n * (q - 1)) + _LIDAR_DELTA * torch.eye(dim).to(features)
    between = means - means.mean(0)
    s_between = between.T @ between / (n - 1)
    values, vectors = torch.linalg.eigh(s_within)
    whiten = vectors * values.rsqrt() @ vectors.T
    return _exp_entropy(torch.linalg.eigvalsh(whiten @ s_between @ whiten).clamp(min=0))


def _exp_entropy(values: Tensor) -> float:
    """Return the exponential of the entropy of values that are scaled to a sum of 1; 1 where all are 0."""
    total = values.sum()
    if not total > 0:
        return 1.0 if total == 0 else float("nan")
    p = values / total
    return float(torch.exp(torch.special.entr(p).sum()))
