"""``typical``: TypiClust asks for the densest image of each cluster. Also clusters and typicality for other strategies.

n images, D features, m images of a cluster.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import numpy as np

from ssl_dist.selection.pool import TILE, Pool, Selection, draw, on_sphere, squared_distances, squares_of

_NEIGHBOURS = 20
_MOST_CLUSTERS = 500
_SMALL = 5  # a cluster of as many images or fewer is asked last
_REFERENCES = 4096
_FULL_KMEANS = 50  # clusters up to which k-means sees all images in each step
_KMEANS_BATCH = 5000


def typical(pool: Pool, count: int, seed: int) -> Selection:
    """Cluster all images, and ask each cluster in turn for its most typical image.

        typicality(x) = 1 / (mean distance of x to its 20 nearest images)

    Features are scaled to length 1. There are as many clusters as there are labelled and requested images, at most 500.
    Clusters take turns: those with the fewest labelled images first, and of these the largest first. Neighbours are
    images of the cluster that are neither labelled nor picked: the 20 nearest, or half of those that are left where
    this is less than 20.
    Clusters of five images or fewer are asked when all others are used up. Ties go to the lower row.

    Source: Hacohen et al., "Active Learning on a Budget: Opposite Strategies Suit High and Low Budgets",
        arXiv 2202.02794, section 3.2; the numbers are of the authors' code, avihu111/TypiClust. That takes the mean of
        squared distances; this is the paper's equation 1.
    """
    x = on_sphere(pool.features)
    cluster = clusters(x, min(len(pool.labelled) + count, _MOST_CLUSTERS, len(x)), seed)
    free = pool.unlabelled[np.argsort(cluster[pool.unlabelled], kind="stable")]  # by cluster, then by row
    sizes, asked = np.bincount(cluster), np.bincount(cluster[pool.labelled], minlength=cluster.max() + 1)
    left = np.bincount(cluster[free], minlength=len(sizes))
    members = np.split(free, np.cumsum(left)[:-1])
    order = np.lexsort((-sizes, asked))
    turns = _turns(order[sizes[order] > _SMALL], left, count)
    turns += _turns(order[sizes[order] <= _SMALL], left, count - len(turns))
    shares = np.bincount(turns, minlength=len(sizes))
    picks = {one: _most_typical(x[members[one]], int(shares[one])) for one in set(turns)}
    return Selection(np.array([members[one][next(picks[one])] for one in turns]))


def _turns(order: Sequence[int] | np.ndarray, left: np.ndarray, count: int) -> list[int]:
    """Return the cluster of each pick: they take turns in this order, each as often as it has images left."""
    found: list[int] = []
    turn = 0
    while len(found) < count and (still := [int(one) for one in order if left[one] > turn]):
        found += still
        turn += 1
    return found[:count]


def _most_typical(x: np.ndarray, count: int) -> Iterator[int]:
    """Yield ``count`` rows of ``[m, D]``, each the most typical of those that are left.

    An image's nearest neighbours among those left are the first of its nearest ``20 + count`` which are left.
    """
    kept = min(len(x) - 1, _NEIGHBOURS + count - 1)
    distances, neighbours = _nearest(x, kept)  # [m, kept], rising
    gone = np.zeros(len(x), dtype=bool)
    for step in range(count):
        k = min(_NEIGHBOURS, (len(x) - step) // 2)
        there = ~gone[neighbours]
        counted = there & (np.cumsum(there, axis=1, dtype=np.int32) <= k)
        spread = np.where(counted, distances, 0).sum(1, dtype=np.float64)
        spread[gone] = np.inf
        pick = int(spread.argmin())
        gone[pick] = True
        yield pick


def _nearest(x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances ``[m, k]`` of each row to its nearest others, rising, and their rows."""
    squares, rows = squares_of(x), max(1, TILE // len(x))
    distances, neighbours = np.empty((len(x), k), np.float32), np.empty((len(x), k), np.int32)
    for start in range(0, len(x) if k else 0, rows):
        part = slice(start, start + rows)
        found = squared_distances(x[part], x, squares[part], squares)
        own = np.arange(len(found))
        found[own, start + own] = np.inf
        first = np.argpartition(found, k - 1, axis=1)[:, :k]
        order = np.take_along_axis(first, np.take_along_axis(found, first, 1).argsort(1, kind="stable"), 1)
        neighbours[part], distances[part] = order, np.sqrt(np.take_along_axis(found, order, 1))
    return distances, neighbours


def mean_distances(x: np.ndarray, rows: np.ndarray, seed: int) -> np.ndarray:
    """Return the mean distance of ``x[rows]`` to their 20 nearest others: 1 / typicality, float32 ``[len(rows)]``.

    The others are 4,096 drawn images, or all where there are fewer: all pairs of a large store would take hours.
    """
    others = np.sort(draw(min(_REFERENCES, len(x)), len(x), seed, stream=1))
    squares, k, size = squares_of(x), min(_NEIGHBOURS, len(others) - 1), max(1, TILE // len(others))
    means = np.zeros(len(rows), np.float32)
    for start in range(0, len(rows) if k else 0, size):
        part = rows[start : start + size]
        found = squared_distances(x[part], x[others], squares[part], squares[others])
        found[part[:, None] == others] = np.inf
        means[start : start + size] = np.sqrt(np.partition(found, k - 1, axis=1)[:, :k]).mean(1)
    return means


def clusters(x: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Cluster the rows of ``[n, D]`` by k-means, int32 ``[n]``; the same for a seed on any number of threads.

    Few clusters are found by k-means, many in batches, as in TypiClust's code.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    options = {"n_clusters": number, "n_init": 1, "random_state": seed % 2**32}
    means = KMeans(**options) if number <= _FULL_KMEANS else MiniBatchKMeans(batch_size=_KMEANS_BATCH, **options)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # images that are equal leave clusters empty
        return np.asarray(means.fit_predict(x), dtype=np.int32)
