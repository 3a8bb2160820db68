"""A chart's path is its curve: values come back from it, extremes are kept, what is not finite breaks it."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Sequence

import pytest

from ssl_dist.report.page.charts import Chart, Point, chart, thinned, value_text


def made(*curves: Sequence[Point], percent: bool = False) -> Chart:
    found = chart("title", "", [(f"line {n}", n, points) for n, points in enumerate(curves)], percent)
    assert found is not None
    return found


def number(text: str) -> float:
    return float(text.replace("\N{MINUS SIGN}", "-").replace(",", ""))


def read_back(found: Chart, line: int = 0) -> list[tuple[float, float]]:
    """Convert a path to values by the two outer ticks of each axis."""

    def scale(ticks: Sequence[tuple[float, str]], place: float) -> float:
        (low, first), (high, last) = ticks[0], ticks[-1]
        return number(first) + (place - low) / (high - low) * (number(last) - number(first))

    places = re.findall(r"[ML](\S+?) ([-0-9.]+)", found.lines[line].path)
    return [(scale(found.x_ticks, float(x)), scale(found.y_ticks, float(y))) for x, y in places]


@pytest.mark.parametrize(("low", "high"), [(0.2, 5.0), (-4.1, -2.0), (1e-6, 3e-3), (12_000.0, 950_000.0), (-1.0, 1e-3)])
def test_values_come_back_from_the_path(low: float, high: float) -> None:
    draw = random.Random(0)
    points = [(epoch / 7, draw.uniform(low, high)) for epoch in range(40)]
    found = made(points)
    # places are rounded to a tenth of the 160 units of a chart's height, whose ticks reach beyond the values
    for (x, y), (there, value) in zip(points, read_back(found), strict=True):
        assert x == pytest.approx(there, abs=0.01)
        assert y == pytest.approx(value, abs=(high - low) / 500)
    places = [place for place, _ in found.y_ticks]
    assert found.bottom == pytest.approx(places[0])
    assert found.top == pytest.approx(places[-1])
    assert 3 <= len(places) <= 9


def test_two_curves_have_one_scale() -> None:
    found = made([(0.0, 1.0), (1.0, 2.0)], [(0.0, 2.0), (4.0, 1.0)])
    assert read_back(found, 0)[1] == pytest.approx((1, 2))
    assert read_back(found, 1) == [pytest.approx((0, 2)), pytest.approx((4, 1))]
    assert json.loads(found.data)["lines"] == [[[0, 1], [1, 2]], [[0, 2], [4, 1]]]


def test_thinning_keeps_ends_and_extremes() -> None:
    draw = random.Random(1)
    points: list[Point] = [(float(n), draw.random()) for n in range(10_000)]
    points[4321], points[8765] = (4321.0, -5.0), (8765.0, 7.0)
    kept = thinned(points)
    assert 200 <= len(kept) <= 302
    assert {points[0], points[-1], points[4321], points[8765]} <= set(kept)
    assert list(kept) == sorted(kept), "in their order"
    assert thinned(points[:300]) == points[:300]


def test_what_is_not_finite_breaks_a_line() -> None:
    found = made([(0.0, 1.0), (1.0, None), (2.0, 3.0), (3.0, None)])
    assert found.lines[0].path.count("M") == 2
    assert "L" not in found.lines[0].path
    assert found.lines[0].last == "not finite"
    assert chart("", "", [("nothing", 0, [(0.0, None)])], percent=False) is None
    assert chart("", "", [], percent=False) is None
    many = [(float(n), None) for n in range(1000)]
    assert all(y is None for _, y in thinned(many))


def test_a_long_line_is_broken_where_its_values_are_not_finite() -> None:
    points: list[Point] = [(float(n), None if n in (1, 700, 701, 2999) else 1.0 + n) for n in range(3000)]
    kept = thinned(points)
    assert len(kept) <= 452
    assert [x for x, y in kept if y is None] == [1, 700, 2999], "one of each stretch"
    assert made(points).lines[0].path.count("M") == made(points[:299]).lines[0].path.count("M") + 1


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0, 1e-9])
def test_one_value_is_a_dot_inside_of_the_frame(value: float) -> None:
    found = made([(0.0, value)])
    [(x, y)] = found.lines[0].dots
    assert found.left <= x <= found.right
    assert found.top <= y <= found.bottom
    assert all(math.isfinite(place) for place, _ in (*found.x_ticks, *found.y_ticks))


def test_values_are_told_as_people_read_them() -> None:
    shown = {0.4711: "0.4711", -3.38271: "\N{MINUS SIGN}3.383", 12345.6: "12,346", 1e-9: "1e-09", 0.0: "0"}
    assert {value: value_text(value, percent=False) for value in shown} == shown
    assert value_text(0.4567, percent=True) == "45.7 %"
    ticks = made([(0.0, 0.29), (1.0, 0.48)], percent=True).y_ticks
    assert [text for _, text in ticks] == ["25 %", "30 %", "35 %", "40 %", "45 %", "50 %"]
