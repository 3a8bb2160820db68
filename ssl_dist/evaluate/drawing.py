"""Stratified draws of labelled images: how many of each class, and which ones, as a pure function of the seed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from ssl_dist.data.permutation import sample_ids
from ssl_dist.errors import ConfigError
from ssl_dist.hashing import derive_seed
from ssl_dist.reading import exact

_DRAWN, _HELD_OUT, _UNLABELLED = range(3)  # tell apart the seeds derived from the run's
_SHARE, _PER_CLASS = re.compile(r"(\d+(?:\.\d+)?)%"), re.compile(r"(\d+)-per-class")


def draw(labels: np.ndarray, class_names: Sequence[str], amount: str, seed: int) -> np.ndarray:
    """Draw labelled images, of each class in proportion to its size and one at least.

    A larger draw of the same seed has all images of a smaller one whose classes all have fewer.

    Args:
        labels: int32 ``[n]``, -1: no label.
        amount: ``all``, a share of the labelled images (``10%``), a number of them (``500``), or one of each class
            (``32-per-class``).

    Returns:
        Sorted sample ids, int64.

    Raises:
        ConfigError: it is none of these, or more than there are.
    """
    rows = _rows_by_class(labels)
    counts = _counts(amount, {class_names[label]: len(ids) for label, ids in rows.items()})
    return _take(rows, counts, seed, _DRAWN)


def hold_out(labels: np.ndarray, drawn: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split drawn images into those to learn from and those to validate on, of each class in proportion.

    One image of each class at least stays to learn from.

    Args:
        labels: int32 ``[n]``; drawn: sample ids, int64.
        share: of the drawn images that are held out, 0 <= share < 1.

    Returns:
        (ids to learn from, ids to validate on), sorted.

    Raises:
        ConfigError: the share is out of range, none of them, or more than may be held out.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"--validation {share:g}: it is a share of the drawn labels, 0 or more and less than 1")
    number = round(exact(share) * len(drawn))
    mine = np.full_like(labels, -1)
    mine[drawn] = labels[drawn]
    rows = _rows_by_class(mine)
    spare = [len(ids) - 1 for ids in rows.values()]
    if share and not 0 < number <= sum(spare):
        raise ConfigError(
            f"--validation {share:g}: that is {number} of {len(drawn)} labels of {len(rows)} classes, of which"
            f" {sum(spare)} can be spared: draw more --labels, or choose another --validation (0: none)"
        )
    held = _take(rows, _in_proportion(number, spare), seed, _HELD_OUT)
    return np.setdiff1d(drawn, held), held


def draw_unlabelled(candidates: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw ``count`` of the candidates' sample ids, sorted; a larger draw of the same seed has those of a smaller."""
    chosen = sample_ids(derive_seed(seed, _UNLABELLED), 0, 0, count, len(candidates))
    return np.sort(candidates[chosen])


def _rows_by_class(labels: np.ndarray) -> dict[int, np.ndarray]:
    return {int(label): np.flatnonzero(labels == label) for label in np.unique(labels[labels >= 0])}


def _take(rows: dict[int, np.ndarray], counts: Sequence[int], seed: int, purpose: int) -> np.ndarray:
    parts = [np.empty(0, dtype=np.int64)]
    for (label, ids), count in zip(rows.items(), counts, strict=True):
        parts.append(ids[sample_ids(derive_seed(seed, purpose, label), 0, 0, count, len(ids))])
    return np.sort(np.concatenate(parts))


def _counts(amount: str, sizes: dict[str, int]) -> list[int]:
    """Return how many labels of each class an amount is, of classes of these sizes."""
    total, per_class, share = sum(sizes.values()), _PER_CLASS.fullmatch(amount), _SHARE.fullmatch(amount)
    if amount == "all":
        return list(sizes.values())
    if per_class:
        number = int(per_class[1])
        if number < 1 or (short := [name for name, size in sizes.items() if size < number]):
            least = f"class {short[0]!r} has {sizes[short[0]]} labels" if number else "it is 1 or more"
            raise ConfigError(f"--labels {amount}: {least}")
        return [number] * len(sizes)
    if not share and not amount.isdecimal():
        raise ConfigError(
            f"--labels {amount}: it is all, a share as 10%, a number as 500, or a number of each class as 32-per-class"
        )
    number = round(Fraction(share[1]) * total / 100) if share else int(amount)
    if not len(sizes) <= number <= total:
        few = f"each of the {len(sizes)} classes needs one" if number < len(sizes) else f"there are {total} labels"
        raise ConfigError(f"--labels {amount}: that is {number} labels, and {few}")
    more = _in_proportion(number - len(sizes), [size - 1 for size in sizes.values()])
    return [1 + count for count in more]


def _in_proportion(number: int, weights: Sequence[int]) -> list[int]:
    """Share ``number`` out by whole weights, whose sum is no less: the largest remainders are rounded up."""
    total = max(1, sum(weights))
    counts = [number * weight // total for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda one: -(number * weights[one] % total))
    for one in by_remainder[: number - sum(counts)]:
        counts[one] += 1
    return counts
