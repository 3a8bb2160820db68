"""How good is a representation, judged without labels: the effective rank of its features.

Both are exponentials of an entropy, between 1 (collapsed) and the number of features; higher is better.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LIDAR_DELTA = 1e-4  # of the paper: keeps the within-image covariance invertible


def rankme(features: Tensor) -> float:
    """Effective rank exp(-sum_k p_k log p_k), p_k = sigma_k / sum sigma, of the singular values sigma of the features.

    Args:
        features: ``[n, D]``, n > D for a rank that could be full; not centred, as in the paper.

    Source: Garrido et al., "RankMe", arXiv 2210.02885, equations 1 and 2. The paper takes the projection head's
        embeddings or the backbone's features; this package hands in the backbone's, which are what is kept.
    """
    sigma = torch.linalg.svdvals(features.double())
    return _exp_entropy(sigma)


def lidar(features: Tensor) -> float:
    """Effective rank of the linear discriminant matrix, with every image a class and its views the samples.

        S_w = mean over images and views of (f - mean_i)(f - mean_i)' + 1e-4 I
        S_b = covariance of the images' means,    LiDAR = exp entropy of the eigenvalues of S_w^-1/2 S_b S_w^-1/2

    Args:
        features: ``[n, q, D]``, q >= 2 augmented views of each of n images.

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
    """1 where all are 0: nothing varies."""
    total = values.sum()
    if not total > 0:
        return 1.0 if total == 0 else float("nan")
    p = values / total
    return float(torch.exp(torch.special.entr(p).sum()))
