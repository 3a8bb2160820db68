"""The rules of a run's curves: its loss, its gradient, its learning rate, its online probe."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import fmean, median

from ssl_dist.training.health.rule import LOGS, PATIENCE, Rule

_FLAT = 0.99  # of the loss at the start; runs that learn have 0.96 or less after 40 steps
_RISE = 0.5  # of what the loss had fallen by: a run that has lost so much is not merely noisy
_LEAST_RISE = 0.1  # of the loss itself, where it had hardly fallen
_LONG = 20  # logs: the least of many means of five is far below their middle in batches of 8 and 16 (measured)
_EXPLOSION = 10.0  # times the norm that the gradient had; in runs that learn, 5 logs differ by less than 4 (measured)
_EARLIER = 40  # logs before the last ones, with which these are compared
_DEAD_RATE = 1e-3  # of its peak: a rate that moves nothing any more
_LEFT = 0.1  # of the run: a cosine is below a thousandth of its peak in the last 2 % only
_RANK_FALL = 0.25  # of the best effective rank; neighbouring measurements differ by a few percent
_SIGMAS = 3.0  # standard errors of an accuracy by which it is worse than chance would have it


class FlatLoss(Rule):
    """A loss that is no lower than at the run's start, ``PATIENCE`` steps after warm-up.

    Only for methods whose loss falls in a run that learns (``Method.loss_falls``).
    """

    name = "flat-loss"
    tags = ("train/loss", "train/loss_at_start")

    def __init__(self, warmup_steps: int) -> None:
        self._patient = warmup_steps + PATIENCE
        self._start, self._first = -math.inf, list[float]()
        self._losses = deque[float](maxlen=LOGS)

    def judge(self, line: Mapping[str, float]) -> str | None:
        self._start = line.get("train/loss_at_start", self._start)
        if (loss := line.get("train/loss")) is None:
            return None
        self._losses.append(loss)
        if len(self._first) < LOGS and line["step"] <= self._patient:
            self._first.append(loss)
        if line["step"] < self._patient or len(self._losses) < LOGS or not self._first:
            return None
        now, start = fmean(self._losses), max(self._start, fmean(self._first))
        if now <= _FLAT * start:
            return None
        return (
            f"the loss is {now:.4g} and was {start:.4g} at the start: the run learns nothing. Try another optim.lr,"
            " three times as large or a third"
        )


class RisingLoss(Rule):
    """A loss that has lost half of what it had gained since the start, after warm-up; methods as in ``FlatLoss``."""

    name = "rising-loss"
    tags = ("train/loss", "train/loss_at_start")

    def __init__(self, warmup_steps: int) -> None:
        self._warm = warmup_steps
        self._start, self._best, self._best_step = -math.inf, math.inf, 0.0
        self._losses = deque[float](maxlen=_LONG)

    def judge(self, line: Mapping[str, float]) -> str | None:
        if (loss := line.get("train/loss", line.get("train/loss_at_start"))) is None:
            return None
        self._losses.append(loss)
        now, step = fmean(self._losses), line["step"]
        self._start = max(self._start, loss if step <= self._warm or not math.isfinite(self._start) else -math.inf)
        if len(self._losses) < _LONG or step <= self._warm:
            return None
        if now < self._best:
            self._best, self._best_step = now, step
        rise = now - self._best
        if rise <= max(_RISE * (self._start - self._best), _LEAST_RISE * abs(self._best)):
            return None
        return (
            f"the loss has risen from {self._best:.4g} at step {self._best_step:,.0f} to {now:.4g}: training comes"
            " apart. Try a third of optim.lr, or optim.clip_norm"
        )


class ExplodingGradient(Rule):
    """A gradient norm of ten times what it was, after warm-up."""

    name = "exploding-gradient"
    tags = ("train/gradient_norm",)

    def __init__(self, warmup_steps: int, clip_norm: float | None) -> None:
        self._warm, self._clip_norm = warmup_steps, clip_norm
        self._norms = deque[float](maxlen=LOGS + _EARLIER)

    def judge(self, line: Mapping[str, float]) -> str | None:
        if line["step"] <= self._warm:
            return None
        self._norms.append(line["train/gradient_norm"])
        if len(self._norms) < 2 * LOGS:
            return None
        earlier, now = median(list(self._norms)[:-LOGS]), median(list(self._norms)[-LOGS:])
        if not earlier or now <= _EXPLOSION * earlier:
            return None
        mend = "" if self._clip_norm else f", or optim.clip_norm={3 * earlier:.2g}"
        return f"the gradient's norm is {now:.3g} and was {earlier:.3g}: it explodes. Try a third of optim.lr{mend}"


class DeadRate(Rule):
    """A learning rate of less than a thousandth of its peak while a tenth of the run or more is left."""

    name = "dead-learning-rate"
    tags = ("train/learning_rate",)

    def __init__(self, peak: float, warmup_steps: int, total_steps: int) -> None:
        self._peak, self._warm, self._total = peak, warmup_steps, total_steps

    def judge(self, line: Mapping[str, float]) -> str | None:
        rate, left = line["train/learning_rate"], 1 - line["step"] / self._total
        if line["step"] <= self._warm or left < _LEFT or rate >= _DEAD_RATE * self._peak:
            return None
        return (
            f"the learning rate is {rate:.2g}, {rate / self._peak:.2g} of its peak, with {left:.0%} of the run left:"
            " the rest changes next to nothing. End it by ssl-dist stop; for the next run, set probe.patience"
        )


class FallingProbe(Rule):
    """An online probe that is worse than at its best, or than at step 0, by more than chance.

    Of an accuracy, chance is three standard errors over the images that are classified; of an effective rank, a
    quarter of the best.

    Args:
        tag: of the probe's values.
        images: that are classified.
        warmup_steps: step 0 is not compared with before their end.
    """

    name = "falling-probe"

    def __init__(self, tag: str, images: int, warmup_steps: int) -> None:
        self.tags = (tag,)
        self._is_rank = tag in ("probe/rankme", "probe/lidar")
        self._images, self._warm = images, warmup_steps
        self._values: dict[float, float] = {}

    def judge(self, line: Mapping[str, float]) -> str | None:
        step, now = line["step"], line[self.tags[0]]
        self._values[step] = now
        best_step = max(self._values, key=lambda step: self._values[step])
        if best_step and (said := self._worse(now, best_step, f"at step {best_step:,.0f}")):
            return f"{said}. That step's checkpoint may be better: evaluate --checkpoint best"
        if step > self._warm and (said := self._worse(now, 0, "before training")):
            return (
                f"{said}. These weights are worth less than those that training began with: try another optim.lr or"
                " other views"
            )
        return None

    def _worse(self, now: float, step: float, when: str) -> str | None:
        """Say so where the probe is now worse than at an earlier step, by more than chance."""
        value = self._values.get(step, -math.inf)
        chance = _RANK_FALL * value
        if not self._is_rank and math.isfinite(value):
            chance = _SIGMAS * math.sqrt(max(value * (1 - value), 1 / self._images) / self._images)
        if not now < value - chance:
            return None
        return f"the probe is {self._show(now)} and was {self._show(value)} {when}: it falls"

    def _show(self, value: float) -> str:
        return f"rank {value:.4g}" if self._is_rank else f"{value:.1%}"
