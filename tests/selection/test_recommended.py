"""What is recommended follows from the shipped table alone, and is random where nothing beats it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks import label_strategies
from ssl_dist.selection.recommended import MEASURED, Measured, gains, recommend, shipped
from ssl_dist.selection.strategies import STRATEGIES
from tests.helpers import save, small_config, train

BASE = (0.50, 0.54, 0.47, 0.51, 0.56)


def rows(strategy: str, differences: list[float], budget: int = 100, start: int = 0) -> list[Measured]:
    """Return measurements of five seeds whose linear accuracy differs from random's by these points."""
    return [
        Measured("made", start, budget, strategy, seed, base + more / 100, 0.9 - base)
        for seed, (base, more) in enumerate(zip(BASE, differences, strict=True))
    ]


RANDOM = [*rows("random", [0] * 5), *rows("random", [0] * 5, 1000), *rows("random", [1] * 5, 1000, 500)]


def test_a_gain_is_the_mean_of_pairs_with_students_interval() -> None:
    differences = [3.0, 1.0, 2.5, 4.0, 0.5]
    found = gains([*RANDOM, *rows("typical", differences)], "typical", 100, from_none=True)
    assert found
    interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    wanted = [np.mean(differences), interval.low, interval.high]
    assert [100 * found.mean, 100 * found.low, 100 * found.high] == pytest.approx(wanted)
    assert found.pairs == 5


def test_the_largest_gain_beyond_its_interval_is_recommended() -> None:
    sure, surer, wild = [1.0, 1.2, 0.9, 1.1, 1.0], [2.0, 2.4, 1.8, 2.1, 2.0], [30.0, -9.0, 12.0, -4.0, 2.0]
    table = [*RANDOM, *rows("coreset", sure), *rows("typical", surer), *rows("coverage", wild)]
    best = recommend(100, from_none=True, measured=table)
    assert best
    assert best.strategy == "typical"
    assert recommend(100, from_none=True, measured=[*RANDOM, *rows("coverage", wild)]) is None
    assert recommend(100, from_none=True, measured=[*RANDOM, *rows("coreset", [-one for one in sure])]) is None


@pytest.mark.parametrize(("total", "is_small"), [(1, True), (100, True), (310, True), (330, False), (10**6, False)])
def test_the_measured_budget_of_the_nearest_ratio_counts(total: int, is_small: bool) -> None:
    best = recommend(total, from_none=True, measured=[*RANDOM, *rows("typical", [2.0, 2.1, 2.2, 2.1, 2.0])])
    assert (best is not None) == is_small


def test_requests_with_and_without_labels_before_are_told_apart() -> None:
    table = [*RANDOM, *rows("margin", [3.0, 3.1, 3.2, 3.1, 3.0], 1000, 500)]
    assert recommend(1000, from_none=True, measured=table) is None
    best = recommend(1000, from_none=False, measured=table)
    assert best
    assert (best.strategy, best.mean) == ("margin", pytest.approx(0.0208)), "beside random requests of the same start"


def test_the_best_of_many_does_not_win_by_chance() -> None:
    """Beyond its own interval of 95 %, and within that of eight comparisons."""
    lucky = [1.0, 0.1, 1.6, 0.9, 0.6]
    alone = [*RANDOM, *rows("typical", lucky)]
    found = recommend(100, from_none=True, measured=alone)
    assert found
    assert found.strategy == "typical"
    worse = [rows(name, [-5.0, 5.0, 1.0, -2.0, 0.0]) for name in STRATEGIES if name not in ("random", "typical")]
    several = [*alone, *(one for some in worse for one in some)]
    found = recommend(100, from_none=True, measured=several)
    interval = stats.ttest_1samp(lucky, 0).confidence_interval(1 - 0.05 / (1 + len(worse)))
    assert found is None
    assert interval.low < 0


def test_nothing_is_recommended_where_nothing_was_measured() -> None:
    assert recommend(100, from_none=True, measured=[]) is None
    assert recommend(100, from_none=True, measured=[*RANDOM, *rows("typical", [2.0] * 5)[:1]]) is None


def test_the_shipped_table_has_the_whole_grid_and_no_figure_of_a_test_part() -> None:
    with MEASURED.open(newline="") as content:
        assert csv.DictReader(content).fieldnames == list(Measured._fields)
    cells = {(one.start, one.budget, one.strategy, one.seed) for one in shipped()}
    wanted = set(label_strategies.cells(list(label_strategies.BUDGETS), label_strategies.SEEDS, ""))
    assert cells == {tuple(one) for one in wanted}
    assert len(cells) == len(shipped())


def test_the_benchmark_measures_what_is_missing_and_ships_the_table(
    small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(small_store)
    save(train(0, 1, config, 0, 2).state, tmp_path / "run", 2, config)
    monkeypatch.setattr(label_strategies, "MEASURED", tmp_path / "measured.csv")
    one = {"folder": tmp_path / "kept", "name": "made", "held_out": 15, "budgets": "9", "seeds": 2, "ship": True}
    arguments = {"run": tmp_path / "run", "train": str(small_store), "test": str(small_store), **one}
    label_strategies.main(**arguments, only="margin")
    first = (tmp_path / "kept" / "rows.csv").read_text()
    label_strategies.main(**arguments, only="")
    assert (tmp_path / "kept" / "rows.csv").read_text().startswith(first), "rows that are there stay"
    with (tmp_path / "measured.csv").open(newline="") as content:
        measured = [Measured.of(row) for row in csv.DictReader(content)]
    assert len(measured) == 2 * (5 + len(STRATEGIES))
    assert {one.start for one in measured} == {0, 4}
    assert all(0 <= one.linear <= 1 and 0 <= one.knn <= 1 for one in measured)
    assert "| half, at random | margin |" in capsys.readouterr().out
