"""Line charts as SVG paths: a page draws them in its own colours, on a screen that is light or dark, and on paper."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

WIDTH, HEIGHT = 360, 190  # units of a chart, about the pixels of a phone
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 8, 22
_MOST_POINTS = 300  # of a line: more cannot be told apart
_FEW_POINTS = 20  # up to so many, each gets a dot
_TICKS = 5  # about so many

Point = tuple[float, float | None]
"""Place and value; None: a value that is not finite, where the line is broken."""


class Line(NamedTuple):
    """A line of a chart.

    Attributes:
        name: for the legend.
        style: number of its colour and dashes.
        path: SVG path.
        dots: places of its points, where there are few.
        last: its last value as text.
    """

    name: str
    style: int
    path: str
    dots: Sequence[tuple[float, float]]
    last: str


@dataclass(frozen=True)
class Chart:
    """A chart of some lines over the same axis.

    Attributes:
        note: how to read it; "": it says so itself.
        x_ticks, y_ticks: place and text of each.
        data: JSON of the shown points, for a script that tells values.
    """

    title: str
    note: str
    lines: Sequence[Line]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    data: str

    width: ClassVar = WIDTH
    height: ClassVar = HEIGHT
    left: ClassVar = _LEFT
    right: ClassVar = WIDTH - _RIGHT
    top: ClassVar = _TOP
    bottom: ClassVar = HEIGHT - _BOTTOM


def chart(title: str, note: str, curves: Sequence[tuple[str, int, Sequence[Point]]], percent: bool) -> Chart | None:
    """Make a chart of curves by name and style over epochs; None where no curve has a finite value.

    Args:
        percent: whether values are shares, which are shown in percent.
    """
    shown = [(name, style, thinned(points)) for name, style, points in curves if any(y is not None for _, y in points)]
    if not shown:
        return None
    x_axis = _Axis.over((x for *_, points in shown for x, _ in points), _LEFT, WIDTH - _RIGHT, at_zero=True)
    y_axis = _Axis.over(
        (y for *_, points in shown for _, y in points if y is not None), HEIGHT - _BOTTOM, _TOP, at_zero=False
    )
    lines = [
        Line(name, style, _path(points, x_axis, y_axis), _dots(points, x_axis, y_axis), _last(points, percent))
        for name, style, points in shown
    ]
    data = {
        "low": x_axis.low,
        "high": x_axis.high,
        "percent": percent,
        "lines": [[[_short(x), None if y is None else _short(y)] for x, y in points] for *_, points in shown],
        "y": [y_axis.low, y_axis.high],
    }
    y_ticks = [(place, _tick(value, y_axis.step, percent)) for place, value in y_axis.ticks()]
    x_ticks = [(place, _tick(value, x_axis.step, False)) for place, value in x_axis.ticks()]
    return Chart(title, note, lines, x_ticks, y_ticks, json.dumps(data, separators=(",", ":")))


def thinned(points: Sequence[Point]) -> Sequence[Point]:
    """Return at most about 450 points: of each stretch the lowest, the highest and one that is not finite, if any.

    The first and the last point are always among them.
    """
    if len(points) <= _MOST_POINTS:
        return points
    size = math.ceil(2 * len(points) / _MOST_POINTS)
    kept = {0, len(points) - 1}
    for start in range(0, len(points), size):
        stretch = range(start, min(start + size, len(points)))
        finite = [number for number in stretch if points[number][1] is not None]
        kept |= set([number for number in stretch if points[number][1] is None][:1])
        if finite:
            kept |= {choose(finite, key=lambda number: points[number][1] or 0.0) for choose in (min, max)}
    return [points[number] for number in sorted(kept)]


class _Axis(NamedTuple):
    """Maps values in [low, high] to places in [start, end]."""

    low: float
    high: float
    step: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Iterable[float], start: float, end: float, *, at_zero: bool) -> _Axis:
        """Make an axis that has room for all values, whose ends are those of its ticks where ``at_zero`` is False."""
        found = list(values)
        low, high = min(found), max(found)
        if at_zero:
            low = min(low, 0.0)
        if not high > low:
            low, high = (low - abs(low) / 10, high + abs(high) / 10) if high else (low, low + 1)
        step = _nice((high - low) / _TICKS)
        if not at_zero:
            low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
        return cls(low, high, step, start, end)

    def __call__(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    def ticks(self) -> list[tuple[float, float]]:
        first, last = math.ceil(self.low / self.step - 1e-9), math.floor(self.high / self.step + 1e-9)
        return [(self(number * self.step), number * self.step) for number in range(first, last + 1)]


def _nice(step: float) -> float:
    """Return 1, 2 or 5 times a power of ten: the smallest one that is not below ``step``."""
    unit = 10.0 ** math.floor(math.log10(step))
    return next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= step * (1 - 1e-9))


def _tick(value: float, step: float, percent: bool) -> str:
    """Return a tick's value with the digits that its step needs."""
    if percent:
        return f"{_tick(100 * value, 100 * step, False)} %"
    if not value:
        return "0"
    if abs(value) >= 1e5 or step < 1e-4:
        digits = math.floor(math.log10(abs(value)) + 1e-9) - math.floor(math.log10(step) + 1e-9)
        return _signed(value, f"{abs(value):.{max(0, digits)}e}")
    return _signed(value, f"{abs(value):,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}")


def value_text(value: float, percent: bool) -> str:
    """Return a value as legends and tables show it."""
    if percent:
        return f"{100 * value:.1f} %"
    return _signed(value, f"{abs(value):,.0f}" if abs(value) >= 1000 else f"{abs(value):.4g}")


def _signed(value: float, text: str) -> str:
    return f"\N{MINUS SIGN}{text}" if value < 0 else text


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _last(points: Sequence[Point], percent: bool) -> str:
    value = points[-1][1]
    return "not finite" if value is None else value_text(value, percent)


def _path(points: Sequence[Point], x_axis: _Axis, y_axis: _Axis) -> str:
    parts, pen = list[str](), "M"
    for x, y in points:
        if y is None:
            pen = "M"
            continue
        parts.append(f"{pen}{x_axis(x):g} {y_axis(y):g}")
        pen = "L"
    return "".join(parts)


def _dots(points: Sequence[Point], x_axis: _Axis, y_axis: _Axis) -> list[tuple[float, float]]:
    if len(points) > _FEW_POINTS:
        return []
    return [(x_axis(x), y_axis(y)) for x, y in points if y is not None]
