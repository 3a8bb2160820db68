"""The linear probe on the labels that a store has, for the strategies that ask where a classifier is unsure.

n images, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ssl_dist.evaluate.logistic_regression import LogisticRegression
from ssl_dist.selection.pool import Pool

_L2 = 1e-3
_TILE = 1 << 23  # float64 numbers at once


class Probe(NamedTuple):
    """Logistic regression on features standardised as those of the labelled images.

    Attributes:
        mean, scale: float64 ``[D]`` of the labelled images; the scale of a constant feature is 1.
        classifier: fitted to the standardised features with l2 = 1e-3, as ``evaluate linear`` does.
    """

    mean: np.ndarray
    scale: np.ndarray
    classifier: LogisticRegression

    @classmethod
    def fit(cls, pool: Pool) -> Probe:
        """Fit a probe to the labelled images, which are of two classes or more."""
        x = pool.features[pool.labelled].astype(np.float64)
        mean, scale = x.mean(0), x.std(0)
        scale[scale <= 1e-7 * np.abs(mean)] = 1
        scale[scale == 0] = 1
        return cls(mean, scale, LogisticRegression.fit((x - mean) / scale, pool.labels[pool.labelled], _L2))

    def standardise(self, x: np.ndarray) -> np.ndarray:
        """Return standardised features, float64 ``[n, D]``."""
        standardised: np.ndarray = (x - self.mean) / self.scale
        return standardised

    def over(self, pool: Pool, rows: np.ndarray, measure: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Return a measure, float64 ``[n]``, of the logits ``[n, K]`` of these rows; they are computed in tiles."""
        size = max(1, _TILE // (pool.features.shape[1] + len(self.classifier.classes)))
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        return np.concatenate(
            [measure(self.classifier.scores(self.standardise(pool.features[part]))) for part in parts]
        )
