"""Stratified draws of labelled images: a number of them to learn from, or a part that is held out."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from ssl_dist.data import sample_ids
from ssl_dist.errors import ConfigError
from ssl_dist.hashing import derive_seed


def draw(labels: np.ndarray, wanted: str, seed: int, class_names: Sequence[str]) -> np.ndarray:
    """Draw labelled images so that each class has its share of them, and one or more.

    Args:
        labels: int ``[n]``, each of a class.
        wanted: how many: ``10%``, ``5000``, or ``32-per-class``.
        seed: any whole number; the draw is a function of it and the labels.

    Returns:
        int64, the rows that were drawn, in rising order.

    Raises:
        ConfigError: ``wanted`` is none of these, or there are not as many labels, or fewer than classes are wanted.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    counts = _counts(sizes, wanted, [class_names[label] for label in classes])
    drawn = [_first(labels, label, count, seed) for label, count in zip(classes, counts, strict=True)]
    return np.sort(np.concatenate(drawn))


def held_out(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Draw a share of each class, and return which images were drawn: bool ``[n]``.

    Of n images of a class ``round(share * n)`` are drawn, but one or more, and fewer than n; a single one is not drawn.

    Args:
        labels: int ``[n]``, each of a class.
        share: in (0, 1).
        seed: any whole number; the draw is a function of it and the labels.
    """
    drawn = np.zeros(len(labels), dtype=bool)
    for label, size in zip(*np.unique(labels, return_counts=True), strict=True):
        drawn[_first(labels, label, min(max(1, round(share * size)), size - 1), seed)] = True
    return drawn


def _first(labels: np.ndarray, label: int, count: int, seed: int) -> np.ndarray:
    """Return the first rows of a class in an order that the seed decides, so that a larger draw holds a smaller one."""
    rows = np.flatnonzero(labels == label)
    first: np.ndarray = rows[sample_ids(derive_seed(seed, int(label)), 0, 0, count, len(rows))]
    return first


def _counts(sizes: np.ndarray, wanted: str, names: Sequence[str]) -> np.ndarray:
    """Return how many images each class gives, of classes that have ``sizes`` images."""
    if match := re.fullmatch(r"([0-9]{1,12})-per-class", wanted):
        count = int(match[1])
        if count < 1 or count > sizes.min():
            raise ConfigError(
                f"--labels {wanted}: class {names[int(sizes.argmin())]!r} has {sizes.min()} labelled images: ask for 1"
                f" to {sizes.min()} of each class"
            )
        return np.full(len(sizes), count)
    if match := re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)%", wanted):
        total = round(float(match[1]) / 100 * sizes.sum())
    elif re.fullmatch("[0-9]{1,12}", wanted):
        total = int(wanted)
    else:
        raise ConfigError(f"--labels {wanted}: it is a share such as 10%, a number, or a number such as 32-per-class")
    if not len(sizes) <= total <= sizes.sum():
        raise ConfigError(
            f"--labels {wanted}: {total} of {sizes.sum()} labelled images in {len(sizes)} classes: ask for"
            f" {len(sizes)} to {sizes.sum()}"
        )
    return _shares(sizes, total)


def _shares(sizes: np.ndarray, total: int) -> np.ndarray:
    """Cut ``total`` in proportion to ``sizes``: whole numbers, each 1 or more; the largest remainders get one more."""
    exact = total * sizes / sizes.sum()
    counts: np.ndarray = np.maximum(1, np.floor(exact).astype(np.int64))
    while counts.sum() != total:
        if counts.sum() < total:
            counts[np.argmax(np.where(counts < sizes, exact - counts, -np.inf))] += 1
        else:
            counts[np.argmin(np.where(counts > 1, exact - counts, np.inf))] -= 1
    return counts
