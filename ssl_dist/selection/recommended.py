"""Which strategy to take: what was measured, beside random requests, and the best of it.

``measured.csv`` has a row for each measurement that ``benchmarks/label_strategies.py`` made. Its accuracies are of
training images that were held out; nothing in it is of a test part.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ssl_dist.selection.strategies import STRATEGIES

MEASURED = Path(__file__).with_name("measured.csv")
_CONFIDENCE = 0.95


class Measured(NamedTuple):
    """The accuracies in [0, 1] that some labels allow.

    Attributes:
        store: the images.
        start: labels that were drawn at random before the request.
        budget: labels in all.
        strategy: its name.
        seed: of the images that were held out, of the first labels, and of the request.
        linear, knn: accuracies of a linear probe and of nearest neighbours.
    """

    store: str
    start: int
    budget: int
    strategy: str
    seed: int
    linear: float
    knn: float

    @classmethod
    def of(cls, row: Mapping[str, str]) -> Measured:
        """Read a row of a CSV file."""
        start, budget, seed = (int(row[name]) for name in ("start", "budget", "seed"))
        return cls(row["store"], start, budget, row["strategy"], seed, float(row["linear"]), float(row["knn"]))


class Gain(NamedTuple):
    """The gain in accuracy over random requests: its mean over pairs of one seed, and the interval of that mean."""

    strategy: str
    budget: int
    store: str
    mean: float
    low: float
    high: float
    pairs: int


@cache
def shipped() -> Sequence[Measured]:
    """Return the table that comes with the package."""
    with MEASURED.open(newline="", encoding="utf-8") as content:
        return tuple(map(Measured.of, csv.DictReader(content)))


def gains(
    measured: Sequence[Measured], strategy: str, budget: int, *, from_none: bool, comparisons: int = 1
) -> Gain | None:
    """Return the gain of a strategy in the linear probe's accuracy at a budget that was measured.

    The interval is Student's, of the differences between the strategy and random requests with the same seed.

    Args:
        from_none: of requests without any label before, or else of those with some.
        comparisons: number of intervals that hold together with 95 % (Bonferroni's inequality).

    Returns:
        None where there are fewer than two pairs.
    """
    from scipy.special import stdtrit

    accuracy = {
        (one.store, one.seed, one.strategy): one.linear
        for one in measured
        if one.budget == budget and (one.start == 0) == from_none
    }
    found = [
        value - accuracy[store, seed, "random"]
        for (store, seed, name), value in accuracy.items()
        if name == strategy and (store, seed, "random") in accuracy
    ]
    if len(found) < 2:
        return None
    stores = {store for store, _, _ in accuracy}
    mean = sum(found) / len(found)
    variance = sum((one - mean) ** 2 for one in found) / (len(found) - 1)
    half = float(stdtrit(len(found) - 1, 1 - (1 - _CONFIDENCE) / comparisons / 2)) * math.sqrt(variance / len(found))
    return Gain(strategy, budget, " and ".join(sorted(stores)), mean, mean - half, mean + half, len(found))


def nearest_budget(total: int, measured: Sequence[Measured] | None = None) -> int | None:
    """Return the measured budget with the least ratio to a number of labels; None where nothing was measured."""
    budgets = {one.budget for one in (shipped() if measured is None else measured)}
    return min(sorted(budgets), key=lambda budget: abs(math.log(budget / total)), default=None)


def recommend(total: int, *, from_none: bool, measured: Sequence[Measured] | None = None) -> Gain | None:
    """Return the strategy of the largest mean gain with an interval above 0, at the measured budget nearest to a total.

    The intervals of all strategies that were measured there hold together, so that the best of many does not win by
    chance.

    Args:
        total: labels with the requested ones.
        from_none: the store has no labels that a probe can learn from.
        measured: the table; by default the package's.

    Returns:
        None where nothing beats random requests beyond the interval, or nothing was measured.
    """
    rows = shipped() if measured is None else measured
    if (nearest := nearest_budget(total, rows)) is None:
        return None
    names = [name for name in STRATEGIES if name != "random" and gains(rows, name, nearest, from_none=from_none)]
    found = (gains(rows, name, nearest, from_none=from_none, comparisons=len(names)) for name in names)
    above = [one for one in found if one and one.low > 0]
    return max(above, key=lambda one: one.mean, default=None)
