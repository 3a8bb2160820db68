"""Claims of a study beside our figures, and the word that a rule gives them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any, Literal, NamedTuple

Pick = Callable[[dict[str, Any]], float]
"""Takes an accuracy in [0, 1] out of a command's JSON object."""
Read = Callable[[str], dict[str, Any] | None]
"""Returns the JSON object of a cell by its name; None of one that is not finished."""
Word = Literal["confirmed", "not confirmed", "not testable here", "not run"]

MARGIN = 0.01
"""Accuracies that differ by less are level."""
TEST_IMAGES = 10_000
_Z = 1.959964  # 97.5 % point of the normal distribution
_T = {2: 12.7062, 3: 4.30265, 4: 3.18245, 5: 2.77645}  # of Student's, by the number of seeds


class Value(NamedTuple):
    """An accuracy or a difference of two, with its interval of 95 %.

    Attributes:
        seeds: those that it is of, and how many the study has: "3", "1 of 3".
    """

    mean: float
    low: float
    high: float
    seeds: str

    @property
    def is_whole(self) -> bool:
        """Whether it is of all seeds."""
        return " of " not in self.seeds

    def percent(self, signed: bool = False) -> str:
        """Return it as text, in percent or points."""
        sign = "+" if signed else ""
        return f"{100 * self.mean:{sign}.1f} ({100 * self.low:{sign}.1f} to {100 * self.high:{sign}.1f})"


class Figure(NamedTuple):
    """An accuracy: of one cell, or one cell for each seed."""

    cells: Sequence[str]
    pick: Pick

    def values(self, read: Read) -> list[float | None]:
        """Return the accuracy of each seed; None of one that is not there yet."""
        found = [read(name) for name in self.cells]
        return [None if one is None else self.pick(one) for one in found]

    def value(self, read: Read) -> Value | None:
        """Return the mean with Student's interval over the seeds, or of one seed the interval over the test images."""
        found = self.values(read)
        there = [one for one in found if one is not None]
        return interval(there, _over_images(there[0]), len(found)) if there else None


def figure(pick: Pick, *cells: str) -> Figure:
    """Make a figure of one cell for each seed."""
    return Figure(cells, pick)


class Row(NamedTuple):
    """A figure of ours, with what the study found, as text."""

    label: str
    ours: Figure
    theirs: str = ""


class Claim(NamedTuple):
    """What a study found of two figures.

    Attributes:
        text: in words.
        theirs: their figures.
        kind: ``above``: the first is higher than the second; ``level``: they do not differ by ``MARGIN``.
        pair: the two figures; None where the claim cannot be tested here.
        why: why it cannot, or what else is to be known.
    """

    text: str
    theirs: str
    kind: Literal["above", "level"] = "above"
    pair: tuple[Figure, Figure] | None = None
    why: str = ""

    def difference(self, read: Read) -> Value | None:
        """Return the first figure minus the second, of the seeds that both have; None of none."""
        return None if self.pair is None else difference(*(one.values(read) for one in self.pair))

    def word(self, read: Read) -> Word:
        """Return the verdict."""
        if self.pair is None:
            return "not testable here"
        found = self.difference(read)
        return "not run" if found is None else verdict(self.kind, found)


def verdict(kind: Literal["above", "level"], found: Value) -> Word:
    """Return the word for a difference.

    Above: confirmed if the whole interval is above 0. Level: confirmed if all of it lies within ``MARGIN`` of 0. Else,
    or while seeds are missing, it is not confirmed, which does not mean that it is refuted: see the interval.
    """
    held = found.low > 0 if kind == "above" else found.low > -MARGIN and found.high < MARGIN
    return "confirmed" if held and found.is_whole else "not confirmed"


def difference(first: Sequence[float | None], second: Sequence[float | None]) -> Value | None:
    """Return the mean of ``first - second`` and its interval, of the seeds for which both are there; None of none.

    Of several seeds, Student's over the differences of equal seeds; of one, that of two independent samples of test
    images, which is wider than it needs to be, since the images are the same.
    """
    pairs = [(one, other) for one, other in zip(first, second, strict=True) if one is not None and other is not None]
    if not pairs:
        return None
    of_one = math.hypot(*map(_over_images, pairs[0]))
    return interval([one - other for one, other in pairs], of_one, len(first))


def interval(values: Sequence[float], of_one: float, planned: int) -> Value:
    """Return the mean of values of several seeds with Student's interval; of one seed, ``of_one`` is half its width."""
    number = len(values)
    half = of_one if number == 1 else _T[number] * stdev(values) / math.sqrt(number)
    mean = fmean(values)
    return Value(mean, mean - half, mean + half, f"{number}" if number == planned else f"{number} of {planned}")


def _over_images(accuracy: float) -> float:
    """Return half the interval of an accuracy over the test images."""
    return _Z * math.sqrt(accuracy * (1 - accuracy) / TEST_IMAGES)


def features(level: str = "backbone", encoder: str = "trained") -> Pick:
    """Pick the accuracy of a level of features from ``evaluate knn|linear``; an encoder is known by its first word."""
    return lambda result: _only(
        row["top1"] for row in result["rows"] if row["features"] == level and row["encoder"].startswith(encoder)
    )


def tuned(start: str = "run", **settings: object) -> Pick:
    """Pick the accuracy of a cell of the grid from ``evaluate finetune``."""
    wanted = {name: str(value) for name, value in settings.items()}
    return lambda result: _only(
        row["top1"]
        for row in result["rows"]
        if row["start"] == start and {name: str(value) for name, value in row["settings"].items()} == wanted
    )


def semi(method: str, ratio: int, start: str = "random") -> Pick:
    """Pick the accuracy of a method at a ratio from ``evaluate semi``; the ratio of the labels alone is 0."""
    return lambda result: _only(
        row["top1"] for row in result["rows"] if (row["method"], row["ratio"], row["start"]) == (method, ratio, start)
    )


def transferred(number: int, encoder: str = "trained") -> Pick:
    """Pick an accuracy from ``evaluate transfer`` of one store: 0: of kNN, 1: of the linear probe."""
    return lambda result: features(encoder=encoder)(result["stores"][0]["results"][number])


def _only(values: Any) -> float:
    (found,) = values
    return float(found)
