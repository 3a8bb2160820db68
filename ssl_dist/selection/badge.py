"""``badge``: k-means++ over the gradients that a linear probe's last layer would have, were its own answers the labels.

m images that are chosen from, D features, K classes.
"""

from __future__ import annotations

import numpy as np

from ssl_dist.selection.pool import ROOM_BYTES, Pool, Selection, draw, squares_of
from ssl_dist.selection.probe import Probe, probabilities

_TILE = 1 << 15  # rows


def badge(pool: Pool, count: int, seed: int, room_bytes: int = ROOM_BYTES) -> Selection:
    """Pick images whose gradients are large and differ: each with a chance of its squared distance to the picked ones.

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
    picked = _spread(*_gradients(probe, pool.features, rows), count, seed)
    return Selection(rows[picked], note)


def _gradients(probe: Probe, features: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the two factors of each gradient: of classes, float32 ``[m, K]``, and of features, float32 ``[m, D]``."""
    errors = np.empty((len(rows), len(probe.classifier.classes)), np.float32)
    inputs = np.empty((len(rows), features.shape[1]), np.float32)
    for start in range(0, len(rows), _TILE):
        part = slice(start, start + _TILE)
        x = probe.standardise(features[rows[part]])
        p = probabilities(probe.classifier.scores(x))
        p[np.arange(len(p)), p.argmax(1)] -= 1
        errors[part], inputs[part] = p, x
    return errors, inputs


def _spread(errors: np.ndarray, inputs: np.ndarray, count: int, seed: int) -> list[int]:
    """Return ``count`` rows by k-means++ over gradients ``[m, K D]``; a uniform number decides all but the first."""
    random = np.random.default_rng(seed)
    squares = squares_of(errors) * squares_of(inputs)  # [m]
    nearest = np.full(len(squares), np.inf, np.float32)
    picked = [int(squares.argmax())]
    while len(picked) < count:
        last = picked[-1]
        found = errors @ errors[last]
        found *= inputs @ inputs[last]
        found *= -2
        found += squares
        found += squares[last]
        np.minimum(nearest, np.maximum(found, 0, out=found), out=nearest)
        nearest[last] = 0
        sums = np.cumsum(nearest, dtype=np.float64)
        if not sums[-1] > 0:
            others = np.setdiff1d(np.arange(len(squares)), picked)
            return [*picked, *others[draw(count - len(picked), len(others), seed, stream=3)].tolist()]
        picked.append(int(np.searchsorted(sums, random.random() * sums[-1], side="right")))
    return picked
