"""``coverage``: ProbCover picks the image whose ball covers most images that no ball covers yet.

n images, D features, m images that are chosen from.
"""

from __future__ import annotations

import numpy as np

from ssl_dist.selection.pool import ROOM_BYTES, TILE, Pool, Selection, draw, on_sphere, squared_distances, squares_of
from ssl_dist.selection.typical import clusters

_PURITY = 0.95
_SAMPLE = 4096  # balls that the radius and the size of the graph are measured on
_ROWS = 64  # of a tile, at the least: products of fewer rows are slow
_TILE_ROWS, _TILE_COLUMNS = 512, 2048  # 4 MB of distances, which stay in a core's cache
_BYTES_OF_A_ROW = 200  # of the graph, beside 4 for each edge
_MOST_CLUSTERS = 100  # where the number of classes is not known


def coverage(pool: Pool, count: int, seed: int, room_bytes: int = ROOM_BYTES) -> Selection:
    """Pick images by the greedy rule for the largest cover by balls of one radius.

    An edge leads from each image to those nearer than the radius. Labelled images cover first; each pick is the
    unlabelled image with the most edges to images that are not covered, ties by the lower row. When all are covered,
    the others are drawn. Features are scaled to length 1; the radius is ``purity_radius`` of all images.

    The graph must fit in ``room_bytes``. Where it would not, the strategy chooses among as many drawn images as do.

    Source: Yehuda et al., "Active Learning Through a Covering Lens", arXiv 2205.11320, algorithm 1 and section 3.3.
    """
    x = on_sphere(pool.features)
    radius = purity_radius(x, max(2, pool.num_classes or min(count, _MOST_CLUSTERS)), seed)
    rows, note = pool.unlabelled, ""
    fits = max(count, _most_that_fit(x[rows], radius, seed, room_bytes))
    if fits < len(rows):
        note = f"coverage: {fits:,} of {len(rows):,} images, drawn at random, fit in memory and are chosen from"
        rows = rows[np.sort(draw(fits, len(rows), seed, stream=2))]
    labelled, x = x[pool.labelled], x[rows]  # the others' features are not held beside the graph
    covered = _covered_by(labelled, x, radius)
    picked = _greedy(_balls(x, radius), covered, count)
    others = np.setdiff1d(np.arange(len(rows)), picked)
    more = others[draw(count - len(picked), len(others), seed, stream=3)] if len(picked) < count else others[:0]
    return Selection(rows[np.concatenate([np.array(picked, np.int64), more])], note)


def purity_radius(x: np.ndarray, num_clusters: int, seed: int) -> float:
    """Return the largest radius at which 95 % of the balls are pure: all images of a ball are of one k-means cluster.

    A ball holds what is nearer than the radius. The share is measured on 4,096 drawn balls, or all where there are
    fewer. Where all images are of one cluster, every ball is pure, and the radius is the largest distance on a sphere.

    Source: as ``coverage``, section 3.3, which asks for a purity of 0.95 and for as many clusters as classes.
    """
    cluster, squares = clusters(x, min(num_clusters, len(x)), seed), squares_of(x)
    centres = draw(min(_SAMPLE, len(x)), len(x), seed, stream=1)
    reach, size = (
        np.empty(len(centres), np.float32),
        max(_ROWS, TILE // len(x)),
    )  # distance to the nearest other cluster
    for start in range(0, len(centres), size):
        part = centres[start : start + size]
        found = squared_distances(x[part], x, squares[part], squares)
        found[cluster[part][:, None] == cluster] = 4
        reach[start : start + size] = np.sqrt(found.min(1))
    allowed = int(len(reach) * (1 - _PURITY) + 1e-9)  # balls that may be impure
    return float(np.sort(reach)[allowed])


def _most_that_fit(x: np.ndarray, radius: float, seed: int, room_bytes: int) -> int:
    """Estimate how many rows of ``[m, D]`` have a graph that fits in ``room_bytes``, by the edges of a sample."""
    sample = draw(min(_SAMPLE, len(x)), len(x), seed, stream=4)
    edges = sum(len(ball) for ball in _balls(x, radius, sample)) / len(sample)
    share = 4 * max(edges, 1) / len(x)  # bytes of the edges of a row, for each row of the graph
    return int((np.sqrt(_BYTES_OF_A_ROW**2 + 4 * share * room_bytes) - _BYTES_OF_A_ROW) / (2 * share))


def _balls(x: np.ndarray, radius: float, centres: np.ndarray | None = None) -> list[np.ndarray]:
    """Return for each row of ``[m, D]``, or of ``centres``, the rows that are nearer than the radius, int32."""
    squares, balls = squares_of(x), list[np.ndarray]()
    centres = np.arange(len(x)) if centres is None else centres
    for start in range(0, len(centres), _TILE_ROWS):
        part = centres[start : start + _TILE_ROWS]
        found = [_edges(x[part], squares[part], x, squares, radius, at) for at in range(0, len(x), _TILE_COLUMNS)]
        owners, members = (np.concatenate(both) for both in zip(*found, strict=True))
        ends = np.cumsum(np.bincount(owners, minlength=len(part)))
        balls += np.split(members[np.argsort(owners, kind="stable")], ends[:-1])
    return balls


def _edges(
    a: np.ndarray, squares_a: np.ndarray, x: np.ndarray, squares: np.ndarray, radius: float, start: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (row of ``a``, row of ``x``) of each pair that is nearer than the radius, for one tile of ``x``'s rows."""
    columns = slice(start, start + _TILE_COLUMNS)
    near = squared_distances(a, x[columns], squares_a, squares[columns]) < np.float32(radius) ** 2
    owners, members = np.divmod(np.flatnonzero(near), near.shape[1])  # far faster than np.nonzero of two dimensions
    return owners.astype(np.int32), (members + start).astype(np.int32)


def _covered_by(centres: np.ndarray, x: np.ndarray, radius: float) -> np.ndarray:
    """Return bool ``[m]``: whether a row of ``x`` is nearer than the radius to a row of ``centres``."""
    squares, others = squares_of(x), squares_of(centres)
    covered, size = np.zeros(len(x), dtype=bool), max(_ROWS, TILE // len(x))
    for start in range(0, len(centres), size):
        part = slice(start, start + size)
        near = squared_distances(centres[part], x, others[part], squares) < np.float32(radius) ** 2
        covered |= near.any(0)
    return covered


def _greedy(balls: list[np.ndarray], covered: np.ndarray, count: int) -> list[int]:
    """Pick up to ``count`` balls, each of which covers most that is not covered; marks what they cover."""
    gains = np.array([np.count_nonzero(~covered[ball]) for ball in balls])
    picked: list[int] = []
    while len(picked) < count and gains.max() > 0:
        pick = int(gains.argmax())
        picked.append(pick)
        new = balls[pick][~covered[balls[pick]]]
        covered[new] = True
        losers = np.concatenate([balls[one] for one in new] or [new])  # an edge leads both ways
        gains -= np.bincount(losers, minlength=len(balls))
        gains[pick] = 0
    return picked
