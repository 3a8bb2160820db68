"""Tests of early stopping: curves alone decide which trials stop, not the clock, nor how often a sweep was killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tune.test_sweep import make
from tune.space import Domain
from tune.stopping import stopping_points
from tune.sweep import Sweep
from tune.trial_files import WORST, Curve, Point, path_of, read_curve, write_outcome

END = 9 * 51  # images of a trial of 9 epochs, measured after each


def nine_epochs(store: Path, **options: Any) -> Sweep:
    space = {"method.temperature": Domain(choice=(0.1, 0.2))}
    return make(store, recipe=make(store).recipe.model_copy(update={"epochs": 9}), space=space, **options)


def curve(*objectives: float, is_complete: bool = True) -> Curve:
    points = [Point(51 * (epoch + 1), value, epoch + 1) for epoch, value in enumerate(objectives)]
    return Curve(points, is_complete, END)


def test_asha_by_hand(small_store: Path) -> None:
    """Rungs at 1, 3 and 9 epochs; at each, a trial continues if it is in the upper third of those up to its number."""
    sweep = nine_epochs(small_store)
    curves = [
        curve(*[0.5] * 9),
        curve(0.4, 0.9, 0.9, 0.9),  # below 0.5, the only one before it: what comes later does not help
        curve(
            0.5, 0.6, 0.6, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1
        ),  # the third of (0.5, 0.4) is 0.4667, of (0.5) at 3 epochs 0.5
        curve(0.48, 0.9),  # the third of (0.5, 0.4, 0.5) is 0.5
        curve(0.6, 0.1, 0.5),  # the third of (0.5, 0.6) is 0.5667
    ]
    assert stopping_points(sweep, curves) == {1: Point(51, 0.4, 1), 3: Point(51, 0.48, 1), 4: Point(153, 0.5, 3)}
    assert stopping_points(nine_epochs(small_store, reduction=2, rung_epochs=4.5), [curve(*[0.5] * 9)] * 2) == {}


def test_the_end_of_a_trial_stops_nothing_but_counts(small_store: Path) -> None:
    sweep = nine_epochs(small_store)
    short = Curve([Point(51, 0.9, 1)], is_complete=True, final_images=51)
    assert (
        stopping_points(
            sweep, [curve(*[0.9] * 9), Curve([Point(51, 0.1, 1)], is_complete=True, final_images=51), short]
        )
        == {}
    )
    assert stopping_points(sweep, [short, curve(0.5, 0.5)]) == {1: Point(51, 0.5, 1)}


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_early_verdicts_stay_true(small_store: Path, scheduler: str) -> None:
    """The verdicts do not depend on how far each trial has come, nor on how many have begun."""
    sweep, random = nine_epochs(small_store, scheduler=scheduler), np.random.default_rng(0)
    for _ in range(40):
        lengths = random.choice([3, 9], size=12)
        whole = [Curve(curve(*random.uniform(size=n)).points, True, 51 * n) for n in lengths]
        final = stopping_points(sweep, whole)
        assert final
        stopped: dict[int, Point] = {}
        reached = np.zeros(12, int)
        while (reached < lengths).any():
            reached = np.minimum(reached + random.integers(0, 3, size=12), lengths)
            partly = [
                Curve(one.points[:n], number in stopped or n == len(one.points), one.final_images)
                for number, (one, n) in enumerate(zip(whole, reached, strict=True))
            ]
            now = stopping_points(sweep, partly[: random.integers(1, 13)])
            assert now.items() <= final.items()
            stopped |= now
            lengths = [reached[i] if i in stopped else len(one.points) for i, one in enumerate(whole)]  # ended by force
        assert stopping_points(sweep, partly) == final


def test_the_first_trials_are_judged_while_later_ones_run(small_store: Path) -> None:
    running = [
        curve(0.5, 0.5, 0.5, is_complete=False),
        curve(0.1, 0.1, is_complete=False),
        curve(0.1, is_complete=False),
    ]
    assert stopping_points(nine_epochs(small_store), running) == {1: Point(51, 0.1, 1), 2: Point(51, 0.1, 1)}
    waiting = [curve(is_complete=False), *running[1:]]
    assert stopping_points(nine_epochs(small_store), waiting) == {}


def test_a_diverged_trial_counts_as_the_worst_of_its_next_rung(small_store: Path, tmp_path: Path) -> None:
    sweep = nine_epochs(small_store)
    config = sweep.config({"method.temperature": 0.1})
    run = path_of(tmp_path, config)
    run.mkdir(parents=True)
    assert read_curve(sweep, run) == Curve([], False, float("inf"))
    (run / "config.json").write_text(config.model_dump_json())
    (run / "metrics.jsonl").write_text('{"step": 5, "probe/knn": 0.5}\n')
    write_outcome(run, "diverged", Point(102, WORST, 7), "the loss is nan")
    found = read_curve(sweep, run)
    assert found == Curve([Point(51, 0.5, 5), Point(102, WORST, 7)], True, 102)
    assert stopping_points(sweep, [found, curve(0.4)]) == {1: Point(51, 0.4, 1)}
