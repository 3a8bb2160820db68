"""How good features are, judged without labels: effective ranks, the decay of their spectrum, alignment, uniformity."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

LIDAR_VIEWS = 10  # for each image
_LIDAR_DELTA = 1e-4  # the paper's; it keeps the within-image covariance invertible
_ALPHA_RANKS = slice(3, 100)  # eigenvalues of ranks 4 to 100, as the authors' code has them
_LEAST_EIGENVALUE = 1e-12  # of the mean square of the features: their rounding to float32 leaves about 1e-14
_UNIFORMITY_T = 2.0
_TILE = 1024  # rows of pairs at once


class Ranks(NamedTuple):
    """The measures of one encoder; NaN where its features do not allow one.

    Attributes:
        rankme: see ``rankme``; of whole images.
        lidar: see ``lidar``; of random views.
        alpha: see ``alpha_req``; of whole images.
        alignment: see ``alignment``; of the first two random views.
        uniformity: see ``uniformity``; of whole images.
        participation: see ``participation_ratio``; of whole images.
        components_90, components_99: principal components that hold 90 and 99 % of the variance of whole images.
    """

    rankme: float
    lidar: float
    alpha: float
    alignment: float
    uniformity: float
    participation: float
    components_90: float
    components_99: float

    @classmethod
    def of(cls, whole: Tensor, views: Tensor) -> Ranks:
        """Measure features of whole images ``[n, D]`` and of their random views ``[n, q, D]``, q >= 2."""
        if not (whole.isfinite().all() and views.isfinite().all()):
            return cls(*[float("nan")] * len(cls._fields))
        eigenvalues = spectrum(whole)
        return cls(
            rankme=rankme(whole),
            lidar=lidar(views),
            alpha=alpha_req(eigenvalues),
            alignment=alignment(views[:, 0], views[:, 1]),
            uniformity=uniformity(whole),
            participation=participation_ratio(eigenvalues),
            components_90=components_that_hold(0.9, eigenvalues),
            components_99=components_that_hold(0.99, eigenvalues),
        )


def rankme(features: Tensor) -> float:
    """Return RankMe: exp(-sum_k p_k log p_k), p_k = sigma_k / sum sigma, of the features' singular values sigma.

    It is between 1 (collapsed) and the number of features; higher is better.

    Args:
        features: ``[n, D]``, not centred, as in the paper; n > D, or the rank cannot be full.

    Source: Garrido et al., "RankMe", arXiv 2210.02885, equations 1 and 2. The paper takes the projection head's
        embeddings or the backbone's features; this package passes the backbone's, which outlive pretraining.
    """
    sigma = torch.linalg.svdvals(features.double())
    return exp_entropy(sigma)


def lidar(features: Tensor) -> float:
    """Return LiDAR, the effective rank of the linear discriminant matrix of images (classes) and views (samples).

        S_w = mean over images and views of (f - mean_i)(f - mean_i)' + 1e-4 I
        S_b = covariance of the images' means,    LiDAR = exp entropy of the eigenvalues of S_w^-1/2 S_b S_w^-1/2

    It is between 1 (collapsed) and the number of features; higher is better.

    Args:
        features: ``[n, q, D]``, q >= 2 augmented views of each of n images. The paper has about 1,000 images of 50
            views; this package takes more images and 10 views, which gives higher values (docs/differences.md).

    Source: Thilak et al., "LiDAR", arXiv 2312.04000, section 3.
    """
    n, q, dim = features.shape
    means = features.double().mean(1)  # [n, D]
    s_within = _LIDAR_DELTA * torch.eye(dim).to(means)
    for view in features.unbind(1):  # one at a time: all in float64 may not fit in memory
        within = view.double() - means
        s_within += within.T @ within / (n * (q - 1))
    between = means - means.mean(0)
    s_between = between.T @ between / (n - 1)
    values, vectors = torch.linalg.eigh(s_within)
    whiten = vectors * values.rsqrt() @ vectors.T
    return exp_entropy(torch.linalg.eigvalsh(whiten @ s_between @ whiten).clamp(min=0))


def spectrum(features: Tensor) -> Tensor:
    """Return the eigenvalues of the covariance of features ``[n, D]``, n >= 2: float64 ``[D]``, largest first.

    Those that rounding of float32 features may have made are 0.
    """
    features = features.double()
    centred = features - features.mean(0)
    eigenvalues = torch.linalg.eigvalsh(centred.T @ centred / (len(features) - 1)).flip(0)
    least = _LEAST_EIGENVALUE * features.square().sum(1).mean()
    return torch.where(eigenvalues > least, eigenvalues, 0)


def alpha_req(eigenvalues: Tensor) -> float:
    """Return alpha of the power law lambda_k ~ k^-alpha that fits a covariance's spectrum.

    It is the slope of log lambda over -log k by least squares over the ranks k = 4 .. 100, where rank k weighs 1 / k.
    Eigenvalues of 0 are left out.

    Args:
        eigenvalues: float64 ``[D]``, largest first, as of ``spectrum``.

    Returns:
        alpha, 0 for a flat spectrum; NaN where fewer than two eigenvalues of these ranks are greater than 0.

    Source: Agrawal et al., "alpha-ReQ", arXiv 2202.05808. It has a line in log-log scale and neither ranks nor weights;
        these are of the authors' code, kumarkrishna/fastssl, fastssl/utils/powerlaw.py and scripts/train_model.py.
    """
    fitted = eigenvalues[eigenvalues > 0][_ALPHA_RANKS]
    if len(fitted) < 2:
        return float("nan")
    ranks = torch.arange(len(fitted)).to(fitted) + _ALPHA_RANKS.start + 1
    x, y, weight = -ranks.log(), fitted.log(), ranks.reciprocal()
    x, y = x - (weight * x).sum() / weight.sum(), y - (weight * y).sum() / weight.sum()
    return float((weight * x * y).sum() / (weight * x * x).sum())


def alignment(views_a: Tensor, views_b: Tensor) -> float:
    """Return the mean of |z_a - z_b|^2 over images, where z are features of two views, brought to length 1.

    It is between 0 (the views agree) and 4; 2 where they are unrelated; lower is better.

    Args:
        views_a, views_b: ``[n, D]``, features of one view and of another of each image.

    Source: Wang and Isola, arXiv 2005.10242, section 4.1: the alignment loss with its default exponent 2.
    """
    z_a, z_b = normalize(views_a.double(), dim=1), normalize(views_b.double(), dim=1)
    return float((z_a - z_b).square().sum(1).mean())


def uniformity(features: Tensor) -> float:
    """Return log mean exp(-2 |z_i - z_j|^2) over all pairs i < j, where z are features, brought to length 1.

    It is 0 where all are in one point, about -4 where they are spread over the sphere; lower is better. Pairs are
    summed a tile at a time, so memory grows with n alone.

    Args:
        features: ``[n, D]``, n >= 2.

    Source: Wang and Isola, arXiv 2005.10242, section 4.1: the uniformity loss with its default t = 2.
    """
    z, total = normalize(features.double(), dim=1), 0.0
    squares = z.square().sum(1)  # 1, or 0 of features that are all 0
    for start in range(0, len(z), _TILE):
        rows = z[start : start + _TILE]
        distances = squares[start : start + _TILE, None] + squares[start:] - 2 * rows @ z[start:].T  # [rows, n - start]
        total += float((-_UNIFORMITY_T * distances.clamp(min=0)).exp().triu(1).sum())
    return math.log(total / (len(z) * (len(z) - 1) / 2))


def participation_ratio(eigenvalues: Tensor) -> float:
    """Return (sum lambda)^2 / sum lambda^2 of eigenvalues ``[D]``: D if all are equal, 1 if one is all, NaN if none."""
    return float(eigenvalues.sum().square() / eigenvalues.square().sum())


def components_that_hold(share: float, eigenvalues: Tensor) -> int:
    """Return how many principal components hold this share of the variance; 0 where there is none.

    Args:
        share: in (0, 1).
        eigenvalues: ``[D]``, largest first, as of ``spectrum``.
    """
    held = eigenvalues.cumsum(0)
    return int((held < share * held[-1]).sum()) + (1 if held[-1] > 0 else 0)


def exp_entropy(values: Tensor) -> float:
    """Return the exponential of the entropy of values that are scaled to a sum of 1; 1 where all are 0."""
    total = values.sum()
    if not total > 0:
        return 1.0 if total == 0 else float("nan")
    p = values / total
    return float(torch.exp(torch.special.entr(p).sum()))
