"""Draws of labels are stratified, seeded and nested, and refuse what there is not."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from ssl_dist.errors import ConfigError
from ssl_dist.evaluate.drawing import draw, draw_unlabelled, hold_out

SIZES = (3, 40, 1, 17, 90)  # of classes; every tenth image has no label
NAMES = [f"class {number}" for number in range(5)]


def made() -> np.ndarray:
    labels = np.repeat(np.arange(5, dtype=np.int32), SIZES)
    np.random.default_rng(0).shuffle(labels)
    return np.insert(labels, np.arange(0, len(labels), 10), -1)


def counts(labels: np.ndarray, ids: np.ndarray) -> list[int]:
    return [int((labels[ids] == label).sum()) for label in range(5)]


def reference(number: int) -> list[int]:
    """One of each class, and of the others each class its quota, rounded down; then the largest remainders get one."""
    quotas = [Fraction((number - 5) * (size - 1), sum(SIZES) - 5) for size in SIZES]
    found = [1 + int(quota) for quota in quotas]
    while sum(found) < number:
        missing = [1 + quota - count for quota, count in zip(quotas, found, strict=True)]
        found[missing.index(max(missing))] += 1
    return found


@pytest.mark.parametrize("number", [5, 6, 15, 50, 77, 150, 151])
def test_each_class_is_drawn_in_proportion_and_once_at_least(number: int) -> None:
    labels = made()
    ids = draw(labels, NAMES, str(number), seed=3)
    assert counts(labels, ids) == reference(number)
    assert len(set(ids.tolist())) == number
    assert (np.diff(ids) > 0).all()


@pytest.mark.parametrize(("amount", "number"), [("10%", 15), ("12.5%", 19), ("100%", 151), ("all", 151), ("151", 151)])
def test_an_amount_is_a_share_or_a_number(amount: str, number: int) -> None:
    assert len(draw(made(), NAMES, amount, seed=0)) == number


def test_an_amount_of_each_class_is_drawn_evenly() -> None:
    labels = np.repeat(np.arange(5, dtype=np.int32), 7)
    assert counts(labels, draw(labels, NAMES, "4-per-class", seed=0)) == [4] * 5


def test_a_draw_is_a_function_of_the_seed_and_larger_ones_hold_smaller_ones() -> None:
    labels = made()
    small, large = (set(draw(labels, NAMES, amount, seed=1).tolist()) for amount in ("20", "80"))
    assert small < large
    assert small == set(draw(labels, NAMES, "20", seed=1).tolist())
    assert small != set(draw(labels, NAMES, "20", seed=2).tolist())
    some = [set(draw_unlabelled(np.arange(50, 90), count, seed=1).tolist()) for count in (3, 30)]
    assert some[0] < some[1] < set(range(50, 90))


@pytest.mark.parametrize(
    ("amount", "message"),
    [
        ("152", r"--labels 152: that is 152 labels, and there are 151 labels"),
        ("4", r"--labels 4: that is 4 labels, and each of the 5 classes needs one"),
        ("101%", r"--labels 101%: that is 153 labels, and there are 151 labels"),
        ("0.1%", r"--labels 0\.1%: that is 0 labels, and each"),
        ("2-per-class", r"--labels 2-per-class: class 'class 2' has 1 labels"),
        ("0-per-class", r"--labels 0-per-class: it is 1 or more"),
        ("many", r"--labels many: it is all, a share as 10%, a number as 500"),
        ("-3", r"--labels -3: it is all"),
    ],
)
def test_what_cannot_be_drawn_is_refused(amount: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        draw(made(), NAMES, amount, seed=0)


@pytest.mark.parametrize("share", [0.1, 0.37, 0.9])
def test_a_part_is_held_out_in_proportion_and_each_class_stays(share: float) -> None:
    labels = made()
    drawn = draw(labels, NAMES, "77", seed=3)
    learnt, held = hold_out(labels, drawn, share, seed=3)
    assert len(held) == round(share * 77)
    assert sorted([*learnt, *held]) == drawn.tolist()
    spare = np.array(counts(labels, drawn)) - 1
    assert np.abs(np.array(counts(labels, held)) - len(held) * spare / spare.sum()).max() < 1
    assert min(counts(labels, learnt)) >= 1


def test_nothing_is_held_out_of_a_share_of_0_and_not_more_than_can_be_spared() -> None:
    labels = made()
    drawn = draw(labels, NAMES, "8", seed=0)
    assert hold_out(labels, drawn, 0, seed=0)[0].tolist() == drawn.tolist()
    for share, message in (
        (0.5, "that is 4 of 8 labels of 5 classes, of which 3 can be spared: draw more --labels"),
        (0.05, "that is 0 of 8 labels"),
        (1.0, "--validation 1: it is a share of the drawn labels"),
    ):
        with pytest.raises(ConfigError, match=message):
            hold_out(labels, drawn, share, seed=0)
