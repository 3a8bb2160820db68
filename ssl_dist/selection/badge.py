"""``badge``: k-means++ over the gradients that a linear probe's last layer would have, were its own answers the labels.

m images that are chosen from, D features, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import softmax

from ssl_dist.selection.pool import ROOM_BYTES, Pool, Selection, draw, squares_of
from ssl_dist.selection.probe import Probe

_TILE = 1 << 12  # rows that are standardised at once
_ROWS = 4096  # of a tile of distances
_TOGETHER = 256  # picks that all rows are told of at once


class _Gradients(NamedTuple):
    """Gradients as products of their factors: errors ``[m, K]`` and inputs ``[m, D]``, with their squared lengths."""

    errors: np.ndarray
    inputs: np.ndarray
    squares: np.ndarray

    def nearest(self, rows: slice | list[int], others: list[int]) -> np.ndarray:
        """Return the squared distance of each row to the nearest of the others."""
        found = self.errors[rows] @ self.errors[others].T
        found *= self.inputs[rows] @ self.inputs[others].T
        found *= -2
        found += self.squares[others]
        least: np.ndarray = np.maximum(found.min(1) + self.squares[rows], 0)
        return least


def badge(pool: Pool, count: int, seed: int, room_bytes: int = ROOM_BYTES) -> Selection:
    """Pick images whose gradients are large and differ, by k-means++.

    An image is drawn with a chance in proportion to its squared distance to the nearest picked one.

        g(x) = (p(x) - onehot(argmax p(x))) h(x)'      p: the probe's probabilities, h: its standardised features

    The gradients, ``[m, K D]``, are never made: the inner product of two is that of their p parts times that of their
    h parts. The first pick has the longest gradient, as in the authors' code. Where all images that are left have
    distance 0, the rest is drawn.

    The parts, ``[m, K + D]``, must fit in ``room_bytes``. Where they would not, the strategy chooses among as many
    drawn images as do.

    Source: Ash et al., "Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds", arXiv 1906.03671,
        algorithm 1; JordanAsh/badge, query_strategies/badge_sampling.py.
    """
    probe, rows, note = Probe.fit(pool), pool.unlabelled, ""
    row_bytes = 4 * (pool.features.shape[1] + len(probe.classifier.classes)) + 64  # and some vectors
    fits = max(count, room_bytes // row_bytes)
    if fits < len(rows):
        note = f"badge: {fits:,} of {len(rows):,} images, drawn at random, fit in memory and are chosen from"
        rows = rows[np.sort(draw(fits, len(rows), seed, stream=2))]
    picked = _spread(_gradients(probe, pool.features, rows), count, seed)
    return Selection(rows[picked], note)


def _gradients(probe: Probe, features: np.ndarray, rows: np.ndarray) -> _Gradients:
    """Return the gradients of these rows, float32."""
    errors = np.empty((len(rows), len(probe.classifier.classes)), np.float32)
    inputs = np.empty((len(rows), features.shape[1]), np.float32)
    for start in range(0, len(rows), _TILE):
        part = slice(start, start + _TILE)
        x = probe.standardise(features[rows[part]])
        p = softmax(probe.classifier.scores(x), axis=1)
        p[np.arange(len(p)), p.argmax(1)] -= 1
        errors[part], inputs[part] = p, x
    return _Gradients(errors, inputs, squares_of(errors) * squares_of(inputs))


def _spread(gradients: _Gradients, count: int, seed: int) -> list[int]:
    """Return ``count`` rows by k-means++.

    A pick can only lower the distances of the other rows, so a known distance is never too small. A row is proposed in
    proportion to its known distance, and taken with the probability (present distance) / (known distance): the picks
    are distributed as if all distances were exact. Distances to many picks are computed in one matrix product.
    """
    random, squares = np.random.default_rng(seed), gradients.squares
    known = np.full(len(squares), np.inf, np.float32)  # no less than the distances
    picked = untold = [int(squares.argmax())]
    while len(picked) < count:
        for start in range(0, len(known), _ROWS):
            rows = slice(start, start + _ROWS)
            np.minimum(known[rows], gradients.nearest(rows, untold), out=known[rows])
        known[untold] = 0
        sums, untold, refused = np.cumsum(known, dtype=np.float64), [], 0
        if not sums[-1] > 0:
            others = np.setdiff1d(np.arange(len(squares)), picked)
            return [*picked, *others[draw(count - len(picked), len(others), seed, stream=3)].tolist()]
        while len(picked) + len(untold) < count and len(untold) < _TOGETHER and refused <= len(untold) + 8:
            row = int(np.searchsorted(sums, random.random() * sums[-1], side="right"))
            now = min(known[row], *gradients.nearest([row], untold)) if untold else known[row]
            if row not in untold and random.random() * known[row] < now:
                untold.append(row)
            else:
                refused += 1
        picked = picked + untold
    return picked
