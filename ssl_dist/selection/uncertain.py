"""``energy``, ``margin`` and ``entropy`` ask where a linear probe is unsure; ``representative`` over its whole range.

n images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import entr, logsumexp, softmax

from ssl_dist.selection.pool import Pool, Selection, draw, on_sphere
from ssl_dist.selection.probe import Probe
from ssl_dist.selection.typical import mean_distances

_BINS = 10


def energies(logits: np.ndarray) -> np.ndarray:
    """Return the energy ``-log sum_k exp(logit_k)`` of each row, ``[n]``; high where a classifier knows no class.

    Source: Liu et al., "Energy-based Out-of-distribution Detection", arXiv 2010.03759, equation 4, with T = 1.
    """
    found: np.ndarray = -logsumexp(logits, axis=1)
    return found


def margins(logits: np.ndarray) -> np.ndarray:
    """Return the probability of the likeliest class less that of the second, ``[n]``.

    Source: Scheffer et al., "Active Hidden Markov Models for Information Extraction", 2001.
    """
    two = np.partition(softmax(logits, axis=1), -2, axis=1)[:, -2:]
    found: np.ndarray = two[:, 1] - two[:, 0]
    return found


def entropies(logits: np.ndarray) -> np.ndarray:
    """Return the entropy ``-sum_k p_k log p_k`` of each row, ``[n]``, in nats."""
    found: np.ndarray = entr(softmax(logits, axis=1)).sum(1)
    return found


def energy(pool: Pool, count: int, seed: int) -> Selection:
    """Pick the images of the highest energy of the probe's logits, ties by the lower row."""
    return _largest(pool, count, energies)


def margin(pool: Pool, count: int, seed: int) -> Selection:
    """Pick the images of the least margin between the probe's two likeliest classes, ties by the lower row."""
    return _largest(pool, count, lambda logits: -margins(logits))


def entropy(pool: Pool, count: int, seed: int) -> Selection:
    """Pick the images of the highest entropy of the probe's classes, ties by the lower row."""
    return _largest(pool, count, entropies)


def _largest(pool: Pool, count: int, measure: Callable[[np.ndarray], np.ndarray]) -> Selection:
    rows = pool.unlabelled
    values = Probe.fit(pool).over(pool, rows, measure)
    return Selection(rows[np.argsort(-values, kind="stable")[:count]])


def representative(pool: Pool, count: int, seed: int) -> Selection:
    """Draw images over the whole spectrum, from those of low to those of high energy.

    Images are sorted by the energy of a probe, and cut into ten bins of equal numbers, or fewer where fewer images are
    requested. As many images of each bin are drawn, up to one. Where labels are missing or all of one class, the bins
    are of typicality (see ``ssl_dist.selection.typical``), from the least typical images to the most typical.
    """
    rows = pool.unlabelled
    if len(np.unique(pool.labels[pool.labelled])) > 1:
        values = Probe.fit(pool).over(pool, rows, energies)
    else:
        values = -mean_distances(on_sphere(pool.features), rows, seed)
    bins = min(_BINS, count)
    parts = np.array_split(np.argsort(values, kind="stable"), bins)
    shares = [count // bins + (number < count % bins) for number in range(bins)]
    drawn = [
        part[draw(share, len(part), seed, stream=10 + number)]
        for number, (part, share) in enumerate(zip(parts, shares, strict=True))
    ]
    return Selection(rows[np.concatenate(drawn)])
