"""Answers are ranked by a rule, intervals equal those of many draws, held-out images have their share of each class."""

from __future__ import annotations

import numpy as np
import pytest

from ssl_dist.errors import ConfigError
from ssl_dist.evaluate.label_draw import draw, held_out
from ssl_dist.evaluate.scores import Accuracy, Answers, Difference, spread


def test_classes_are_ranked_by_votes_then_by_number() -> None:
    votes = np.array([[0, 3, 1, 3, 0, 2, 5], [0, 0, 0, 0, 1, 0, 0]], dtype=float)
    found = Answers.of(votes)
    assert found.classes.tolist() == [[6, 1, 3, 5, 2], [4, -1, -1, -1, -1]]
    assert found.confidence.tolist() == [5 / 14, 1.0]
    assert found.right(np.array([3, 0])).tolist() == [False, False]
    assert found.right(np.array([3, 4]), 5).tolist() == [True, True]
    assert Answers.of(votes[:, :2]).classes[0].tolist() == [1, -1, -1, -1, -1]


@pytest.mark.parametrize(("count", "right"), [(40, 31), (500, 20), (300, 150)])
def test_the_interval_is_that_of_drawing_the_images_again(count: int, right: int) -> None:
    answers = np.arange(count) < right
    found = Accuracy.of(answers)
    drawn = answers[np.random.default_rng(0).integers(0, count, (20_000, count))].mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert found.value == right / count
    one_image = 1.01 / count  # the quantiles of finitely many draws may be an image off
    assert (found.low, found.high) == (pytest.approx(low, abs=one_image), pytest.approx(high, abs=one_image))


def test_repeats_have_their_mean_and_spread() -> None:
    found = Accuracy.mean([np.array([True, False, True, True]), np.array([True, False, False, False])])
    assert found.value == 0.5
    assert spread([0.75, 0.25]) == pytest.approx(np.std([0.75, 0.25], ddof=1))
    assert spread([0.75]) is None


@pytest.mark.parametrize(("images", "repeats"), [(40, 1), (600, 1), (300, 3)])
def test_the_interval_of_a_difference_is_that_of_drawing_pairs_again(images: int, repeats: int) -> None:
    random = np.random.default_rng(repeats)
    hard = random.random(images)  # the same images are hard for both
    right = (random.random((repeats, images)) > 0.7 * hard).mean(0)
    other = (random.random((repeats, images)) > hard).mean(0)
    found = Difference.between(right, other)
    drawn = random.integers(0, images, (20_000, images))
    low, high = np.percentile(right[drawn].mean(1) - other[drawn].mean(1), [2.5, 97.5])
    assert found.value == pytest.approx(right.mean() - other.mean(), abs=1e-12)
    one_image = 1.01 / images  # the quantiles of finitely many draws may be an image off
    assert (found.low, found.high) == (pytest.approx(low, abs=one_image), pytest.approx(high, abs=one_image))
    assert found == Difference.between(right, other)


def test_what_both_answer_alike_makes_no_difference() -> None:
    right = np.array([1.0, 0.0, 1.0, 0.5])
    assert Difference.between(right, right) == (0, 0, 0)
    assert Difference.between(np.ones(7), np.zeros(7)) == (1, 1, 1)
    assert str(Difference(-0.0123, -0.02, 0.001)) == "-1.2 (-2.0 .. +0.1)"


def test_each_class_gives_its_share() -> None:
    labels = np.repeat([0, 1, 2, 5], [100, 10, 2, 1])
    out = held_out(labels, 0.2, seed=3)
    assert [int(out[labels == label].sum()) for label in (0, 1, 2, 5)] == [20, 2, 1, 0]
    assert np.array_equal(out, held_out(labels, 0.2, seed=3))
    assert not np.array_equal(out, held_out(labels, 0.2, seed=4))
    assert held_out(labels, 0.9, 0)[labels == 2].sum() == 1, "one image stays to learn from"


SIZES = {0: 100, 1: 10, 2: 2, 5: 1}
LABELS = np.random.default_rng(0).permutation(np.repeat(list(SIZES), list(SIZES.values())))
NAMES = [f"class {number}" for number in range(6)]


@pytest.mark.parametrize(
    ("wanted", "counts"),
    [
        ("113", [100, 10, 2, 1]),
        ("4", [1, 1, 1, 1]),
        ("10%", [8, 1, 1, 1]),
        ("57", [50, 5, 1, 1]),
        ("1-per-class", [1, 1, 1, 1]),
    ],
)
def test_draws_have_each_classs_share(wanted: str, counts: list[int]) -> None:
    rows = draw(LABELS, wanted, 0, NAMES)
    assert [int((LABELS[rows] == label).sum()) for label in SIZES] == counts
    assert len(set(rows.tolist())) == sum(counts)
    assert np.array_equal(rows, draw(LABELS, wanted, 0, NAMES))


def test_a_larger_draw_holds_a_smaller_one_and_another_seed_draws_others() -> None:
    small, large = (set(draw(LABELS, f"{number}", 3, NAMES).tolist()) for number in (20, 60))
    assert small < large
    assert small != set(draw(LABELS, "20", 4, NAMES).tolist())


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("114", "--labels 114: 114 of 113 labelled images in 4 classes: ask for 4 to 113"),
        ("3", "ask for 4 to 113"),
        ("200%", "226 of 113"),
        ("0%", "0 of 113"),
        ("2-per-class", "class 'class 5' has 1 labelled images: ask for 1 to 1 of each class"),
        ("0-per-class", "ask for 1 to 1"),
        ("many", "--labels many: it is a share such as 10%, a number, or a number such as 32-per-class"),
        ("-5", "it is a share"),
        ("1e3", "it is a share"),
        ("\N{ARABIC-INDIC DIGIT THREE}-per-class", "it is a share"),
        ("9" * 5000, "it is a share"),
        ("9" * 400 + "%", "it is a share"),
    ],
)
def test_a_draw_of_more_than_there_are_is_refused(wanted: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        draw(LABELS, wanted, 0, NAMES)
