"""The rules of embeddings: collapse, few dimensions in use, and what a low temperature does to them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import fmean

from ssl_dist.training.health.rule import LOGS, MAX_ROWS, PATIENCE, Rule

COLLAPSED_STD = (
    0.03  # a smaller std is collapse; healthy ones are near 1; at temperature 0.01 a run that learned had 0.11
)
COLLAPSED_SEPARATION = 0.9  # a larger one is collapse; 512 rows of noise have 0.96 to 1.03 (measured)
FLAT_SHARE = 0.99  # a loss above this share of a collapsed network's is collapse; runs that learn have 0.96 at step 40
_NOISE = 0.6  # standard deviation of a separation, times the root of its rows (measured on digits, 8 to 64 rows)
_FEW = 1 / 12  # of the rank that embeddings can have; healthy runs of SimCLR have a quarter (measured)
_CROWDED = 0.5  # a spread below it; with temperature 0.02, CIFAR-10 has 0.25 and digits 0.4, with 0.2 both 0.9 or more
_LOW_TEMPERATURE = 0.1  # the lower end of what SimCLR's authors found good
_MEND = "Try a third of optim.lr, more warm-up, or views that keep more of the image (augment.crop_scale)"


class Collapse(Rule):
    """Tells from a run's numbers whether training looks collapsed, judged against the run's own step 0.

    Two views of an image may differ as much as two images before anything is learnt, in small or plain pictures, so
    that says nothing by itself. From the end of warm-up, embeddings are collapsed that are in one point, or clearly
    worse than at step 0. After ``PATIENCE`` further steps, so are those that are no better than at step 0, or a loss
    that is still that of a constant embedding.

    Args:
        warmup_steps: of the run. A warm-up of more than ``PATIENCE`` steps hides what is clearly worse no longer.
        rows: images of a batch.
    """

    name = "collapse"
    tags = ("train/loss", "embedding/separation")

    def __init__(self, warmup_steps: int, rows: int) -> None:
        self._warm, self._patient = min(warmup_steps, PATIENCE), warmup_steps + PATIENCE
        self._rows = min(rows, MAX_ROWS)
        self._separations, self._losses = (deque[float](maxlen=LOGS) for _ in range(2))
        self._start: Mapping[str, float] = {}

    def judge(self, line: Mapping[str, float]) -> str | None:
        """Take the line of step 0, which has the statistics that later ones are compared with, or a later one."""
        step = line["step"]
        if not step:
            self._start = line
        if step <= self._warm:
            return None
        self._losses.append(line["train/loss"])
        mean_loss, limit = fmean(self._losses), line.get("train/loss_if_collapsed")
        if "embedding/separation" in line:
            self._separations.append(line["embedding/separation"])
            if line["embedding/std"] < min(COLLAPSED_STD, self._start.get("embedding/std", math.inf) / 2):
                return f"all embeddings are in one point: this is collapse. {_MEND}"
            if self._unlike(step):
                return (
                    "two views of an image differ as much as two images, and training makes it no better: this is"
                    f" collapse. {_MEND}"
                )
        if limit is not None and step >= self._patient and mean_loss > FLAT_SHARE * limit:
            return (
                f"the loss is {mean_loss:.3f}; if all images had the same embedding, it would be {limit:.3f}: this is"
                f" collapse. {_MEND}"
            )
        return None

    def _unlike(self, step: float) -> bool:
        """Return whether views of an image are as unlike as different images, because of the training."""
        now, start = fmean(self._separations), self._start.get("embedding/separation")
        if now <= COLLAPSED_SEPARATION:
            return False
        if step >= self._patient:
            return start is None or now > start - _NOISE / math.sqrt(self._rows * len(self._separations))
        return start is not None and now > start + 3 * _NOISE / math.sqrt(self._rows)


class FewDimensions(Rule):
    """Embeddings whose effective rank, from the end of warm-up, is small beside what it can be, and half of step 0's.

    Source of the measure: ``evaluate.rank.rankme``. Of the failure: Jing et al., "Understanding Dimensional Collapse in
    Contrastive Self-Supervised Learning", arXiv 2110.09348.
    """

    name = "few-dimensions"
    tags = ("embedding/rank",)

    def __init__(self, warmup_steps: int) -> None:
        self._warm, self._start = min(warmup_steps, PATIENCE), math.inf
        self._ranks = deque[float](maxlen=LOGS)

    def judge(self, line: Mapping[str, float]) -> str | None:
        rank, limit = line["embedding/rank"], line["embedding/rank_limit"]
        if not line["step"]:
            self._start = rank
        if line["step"] <= self._warm:
            return None
        self._ranks.append(rank)
        now = fmean(self._ranks)
        if len(self._ranks) < LOGS or now >= _FEW * limit or now >= self._start / 2:
            return None
        return f"embeddings use {now:.0f} of {limit:.0f} dimensions: {_MEND[0].lower()}{_MEND[1:]}"


class LowTemperature(Rule):
    """Embeddings that crowd together, from the end of warm-up, in a run of low temperature.

    Divided by a low temperature, the differences of random cosines are large: the loss begins far above that of equal
    embeddings, and the quickest way down is to make all embeddings alike.
    """

    name = "low-temperature"
    tags = ("embedding/std",)

    def __init__(self, warmup_steps: int, temperature: float) -> None:
        self._warm, self._temperature = min(warmup_steps, PATIENCE), temperature
        self._spreads = deque[float](maxlen=LOGS)

    def judge(self, line: Mapping[str, float]) -> str | None:
        if line["step"] <= self._warm:
            return None
        self._spreads.append(line["embedding/std"])
        spread = fmean(self._spreads)
        if self._temperature >= _LOW_TEMPERATURE or len(self._spreads) < LOGS or spread >= _CROWDED:
            return None
        used = ""
        if "embedding/rank" in line:
            used = f" and use {line['embedding/rank']:.0f} of {line['embedding/rank_limit']:.0f} dimensions"
        return (
            f"embeddings crowd together{used}, with a spread of {spread:.2g} (1: all over the sphere): temperature"
            f" {self._temperature:g} is low; try method.temperature 0.1 to 0.5"
        )
