"""Answers of a classifier, and its accuracy with an interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

TOP = 5
"""Classes that an answer names at most."""
_LEVEL = 0.95
_RESAMPLES = 100_000  # an end of an interval is then known to about 1 % of the interval's width


class Answers(NamedTuple):
    """The answers of a classifier about q images.

    Attributes:
        classes: int64 ``[q, TOP]``, the likeliest first; -1 where the classifier names no further class.
        confidence: float64 ``[q]`` in [0, 1], the share of votes or the probability of the first class.
    """

    classes: np.ndarray
    confidence: np.ndarray

    @classmethod
    def of(cls, votes: np.ndarray) -> Answers:
        """Rank the classes by their votes, float64 ``[q, K]``, 0 or more.

        Of equal ones, the class of the lower number is first. A class without a vote is not named.
        """
        top = min(TOP, votes.shape[1])
        order = np.argsort(-votes, axis=1, kind="stable")[:, :top]
        ranked = np.take_along_axis(votes, order, 1)
        total = votes.sum(1)
        classes = np.full((len(votes), TOP), -1)
        classes[:, :top] = np.where(ranked > 0, order, -1)
        return cls(classes, ranked[:, 0] / np.where(total > 0, total, 1))

    def right(self, truth: np.ndarray, top: int = 1) -> np.ndarray:
        """Return whether the true class, int ``[q]``, is among the ``top`` first ones: bool ``[q]``."""
        found: np.ndarray = (self.classes[:, :top] == truth[:, None]).any(1)
        return found


class Accuracy(NamedTuple):
    """A share of right answers, with the bootstrap interval of 95 % over the images; all in [0, 1]."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, right: np.ndarray) -> Accuracy:
        """Return the share of right answers, bool ``[q]``, q >= 1.

        Among q images drawn again with replacement, the number of right answers has a binomial distribution. So the
        percentiles over all possible draws are its quantiles, and no random number is needed.

        Source: Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7, 1979; percentiles.
        """
        return cls.mean([right])

    @classmethod
    def mean(cls, repeats: Sequence[np.ndarray]) -> Accuracy:
        """Return the mean accuracy of several repeats, bool ``[q]`` each, over the same images.

        The interval is as wide as that of one repeat with this accuracy, because it is over the images. ``spread`` says
        how far the repeats differ.
        """
        from scipy.stats import binom  # here: a help page needs none of it

        value = float(np.mean([right.mean() for right in repeats]))
        count = len(repeats[0])
        low, high = binom.ppf([(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], count, value) / count
        return cls(value, float(low), float(high))

    @property
    def interval(self) -> str:
        """The interval as text, in percent."""
        return f"{100 * self.low:.1f} .. {100 * self.high:.1f}"


class Difference(NamedTuple):
    """How far one encoder's accuracy is above another's, with its interval of 95 %; all in [-1, 1]."""

    value: float
    low: float
    high: float

    @classmethod
    def between(cls, right: np.ndarray, other: np.ndarray) -> Difference:
        """Return the difference of two accuracies on the same images, with its paired bootstrap interval.

        Images that are hard for both move both accuracies alike, so this interval is narrower than what the two
        accuracies' own intervals suggest. The same images always give the same interval.

        Args:
            right, other: float64 ``[q]`` in [0, 1], q >= 1: the share of an encoder's repeats whose answer is right.

        Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentiles), chapter 8
            (pairs are drawn whole).
        """
        gains, counts = np.unique(right - other, return_counts=True)
        # Of q images drawn again, how many have each gain is multinomial.
        draws = np.random.default_rng(0).multinomial(len(right), counts / len(right), size=_RESAMPLES)
        low, high = np.percentile(draws @ gains / len(right), [50 * (1 - _LEVEL), 50 * (1 + _LEVEL)])
        return cls(float(np.mean(right - other)), float(low), float(high))

    def __str__(self) -> str:
        """Return it in percentage points, as -1.2 (-2.1 .. -0.3)."""
        return f"{100 * self.value:+.1f} ({100 * self.low:+.1f} .. {100 * self.high:+.1f})"


def spread(values: Sequence[float]) -> float | None:
    """Return the standard deviation of repeats (n - 1 in the denominator); None of a single one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
