"""``coreset``: k-center greedy. Each pick is the image that is farthest from its nearest labelled or picked image.

n images, D features, C candidates.
"""

from __future__ import annotations

import numpy as np

from ssl_dist.selection.pool import Pool, Selection, draw, squared_distances, squares_of

_CANDIDATES = 8192
_ROWS, _CENTRES = 2048, 512  # of a tile of distances, which stays in the cache
_TAKEN = -1.0  # in place of the distance of an image that is labelled or picked


def coreset(pool: Pool, count: int, seed: int) -> Selection:
    """Pick the farthest image, again and again: the greedy solution of the k-center problem.

    Distances are Euclidean, of features as they are. The first pick of a pool without labels is drawn. Ties go to the
    lower row.

    A pick can only lower the distances of other images. So each pick is at once compared with the images that are
    farthest now, the candidates, and with all others later, for many picks in one matrix product. The farthest
    candidate is the farthest image while it is farther than all others were. The picks are those of the plain rule.

    Source: Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach",
        arXiv 1708.00489, algorithm 1.
    """
    x = pool.features - pool.features.mean(0, dtype=np.float64).astype(np.float32)  # rounding grows with the lengths
    squares, nearest = squares_of(x), np.full(len(x), np.inf, np.float32)  # [n]
    picked: list[int] = []
    untold = pool.labelled.tolist()  # centres that the distances of most images do not know yet
    if not untold:
        untold = picked = draw(1, len(x), seed).tolist()
    while len(picked) < count:
        _tell(nearest, x, squares, np.array(untold))
        few, bound = _farthest(nearest)
        own, own_squares, near = x[few], squares[few], nearest[few]
        pick, untold = int(nearest.argmax()), []
        while True:
            untold.append(pick)
            found = squared_distances(own, x[[pick]], own_squares, squares[[pick]])[:, 0]
            np.minimum(near, found, out=near)
            near[few == pick] = _TAKEN
            best = int(near.argmax())
            if len(picked) + len(untold) == count or near[best] <= bound:
                break
            pick = int(few[best])
        picked = picked + untold
    return Selection(np.array(picked[:count]))


def _tell(nearest: np.ndarray, x: np.ndarray, squares: np.ndarray, centres: np.ndarray) -> None:
    """Lower squared distances ``[n]`` to the nearest centre by those to new centres."""
    for first in range(0, len(centres), _CENTRES):
        some = centres[first : first + _CENTRES]
        others, others_squares = x[some], squares[some]
        for start in range(0, len(x), _ROWS):
            rows = slice(start, start + _ROWS)
            found = squared_distances(x[rows], others, squares[rows], others_squares).min(1)
            np.minimum(nearest[rows], found, out=nearest[rows])
    nearest[centres] = _TAKEN


def _farthest(nearest: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the rows of the farthest images in rising order, ``[C]``, and the largest distance of the others."""
    if len(nearest) <= _CANDIDATES:
        return np.arange(len(nearest)), -np.inf
    order = np.argpartition(nearest, -_CANDIDATES - 1)
    return np.sort(order[-_CANDIDATES:]), float(nearest[order[-_CANDIDATES - 1]])
