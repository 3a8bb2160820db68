"""What a run has reached, in words: its last numbers with plain names and units, and its probe beside step 0."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

_PROBES = {
    "probe/knn": ("online kNN", "{:.1%}"),
    "probe/linear": ("online linear probe", "{:.1%}"),
    "probe/rankme": ("online RankMe", "rank {:.4g}"),
    "probe/lidar": ("online LiDAR", "rank {:.4g}"),
    "probe/validation": ("validation accuracy", "{:.1%}"),
}
_NAMES = {
    "train/loss": ("loss", "{:.4g}"),
    "train/loss_at_start": ("loss at step 0", "{:.4g}"),
    "train/loss_if_collapsed": ("loss if collapsed", "{:.4g}"),
    "validation/loss": ("validation loss", "{:.4g}"),
    "train/learning_rate": ("learning rate", "{:.3g}"),
    "train/gradient_norm": ("gradient norm", "{:.3g}"),
    "embedding/alignment": ("alignment", "{:.3g} (0: two views agree, 2: unrelated)"),
    "embedding/uniformity": ("uniformity", "{:.3g} (0: all in one point, -4: spread)"),
    "embedding/separation": ("separation", "{:.3g} (0: two views agree, 1: unlike as two images)"),
    "embedding/std": ("spread", "{:.3g} (0: all in one point, 1: spread)"),
    "embedding/rank": ("dimensions in use", "{:.1f} (effective rank)"),
    "embedding/rank_limit": ("largest possible rank", "{:.0f}"),
    "speed/images_per_s": ("speed", "{:,.0f} images/s (median)"),
    "speed/data_wait_share": ("waiting for data", "{:.1%} of the time"),
    "memory/peak_mb": ("peak memory", "{:,.0f} MB"),
}
_SPEEDS = {"speed/images_per_s", "speed/data_wait_share"}


class ProbeCurve(NamedTuple):
    """The values of a run's online probe by step, of which there is one at least; higher is better."""

    tag: str
    values: dict[int, float]

    @classmethod
    def of(cls, lines: Sequence[dict[str, Any]]) -> ProbeCurve | None:
        """Find the probe in the lines of a run's metrics; None where nothing was measured."""
        for tag in _PROBES:
            if values := {line["step"]: line[tag] for line in lines if tag in line}:
                return cls(tag, values)
        return None

    @property
    def name(self) -> str:
        """What was measured, in words."""
        return _PROBES[self.tag][0]

    @property
    def is_share(self) -> bool:
        """Whether values are shares of right answers, in [0, 1]."""
        return "%" in _PROBES[self.tag][1]

    @property
    def start(self) -> float | None:
        """The value of the initial weights; None where it was not measured."""
        return self.values.get(0)

    @property
    def last(self) -> float:
        return self.values[max(self.values)]

    def __str__(self) -> str:
        """Return the last value, and beside it those of step 0 and of the best step."""
        best, beside = max(self.values, key=lambda step: (self.values[step], step)), []
        if self.start is not None and max(self.values):
            beside.append(f"{self._show(self.start)} at step 0")
        elif self.start is not None:
            beside.append("at step 0")
        if self.values[best] > self.last and best:
            beside.append(f"best {self._show(self.values[best])} at step {best:,}")
        return self._show(self.last) + (f" ({', '.join(beside)})" if beside else "")

    def verdict(self) -> str | None:
        """Say so where training has not made the encoder better than its initial weights; None where it has."""
        if self.start is None or not max(self.values) or self.last > self.start:
            return None
        return (
            f"{self.name} is no better than at step 0, {self._show(self.last)} after {self._show(self.start)}:"
            " these weights are worth no more than the run's first ones; more epochs, another learning rate or other"
            " views may help"
        )

    def _show(self, value: float) -> str:
        return _PROBES[self.tag][1].format(value)


def summary(lines: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return the last numbers of a run's metrics by plain names, with units; none where there are no lines.

    Of speeds it is the median, since the last interval may be one of few steps.
    """
    last: dict[str, Any] = {}
    for line in lines:
        last |= line
    if not last:
        return {}
    for tag in _SPEEDS & last.keys():
        last[tag] = statistics.median(line[tag] for line in lines if tag in line)
    total = f" of {last['plan/total_steps']:,}" if "plan/total_steps" in last else ""
    rows = {"steps": f"{last['step']:,}{total}, {last['epoch']:.4g} epochs"}
    if probe := ProbeCurve.of(lines):
        rows[_PROBES[probe.tag][0]] = str(probe)
    for tag, (name, form) in _NAMES.items():
        if tag in last:
            rows[name] = form.format(last[tag])
    known = {*_NAMES, *_PROBES, "plan/total_steps", "step", "epoch"}
    return rows | {tag: f"{value:.6g}" for tag, value in last.items() if tag not in known}
