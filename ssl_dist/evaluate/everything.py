"""All measures of an encoder that fit into a number of minutes, the most telling first; what does not fit is named.

The cost of the measures is known from two that are timed first: embedding some images, and fitting a probe to some.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np

from ssl_dist.checkpoint import Checkpoint
from ssl_dist.evaluate.compare import Comparison, Options, compare_on
from ssl_dist.evaluate.contenders import embed_pair
from ssl_dist.evaluate.features import load_method
from ssl_dist.evaluate.label_draw import draw
from ssl_dist.evaluate.labelled import Labelled
from ssl_dist.evaluate.levels import levels_that_fit
from ssl_dist.evaluate.maps import Groups, Panel, Settings, embed_over_training, layouts
from ssl_dist.evaluate.over_training import RankRow, drawn, rank_curve
from ssl_dist.evaluate.protocols import EvaluationProtocol, Knn, Linear, ProgressCallback
from ssl_dist.evaluate.rank import LIDAR_VIEWS
from ssl_dist.store import ImageStore

Bar = Callable[[str], AbstractContextManager[ProgressCallback]]
"""Makes a bar of this title."""

_TIMED, _TIMED_CLASSES = (
    4000,
    10,
)  # images that are embedded, and to which a probe is fitted, to know what more of them cost
_RANKED, _MAPPED = 2048, 2000  # images, at most
_FEWEST_RANKED, _FEWEST_MAPPED = 512, 5  # images
_WARM_UP = 256  # images that are embedded before: the first ones take longer
_MAP_S = 0.02  # seconds of a map for each image: t-SNE on one busy core (measured: 0.01 to 0.015)
_PICTURES_S, _FOR_PICTURES = 15.0, 0.2  # seconds for pictures, and their share of the time at most
_FOR_LABELS = 0.7  # share of the time that the measures with labels may take
_CAUTION = 1.3  # a part starts only if this many times its expected seconds are left


class Costs(NamedTuple):
    """Seconds for each image that is embedded, and for each to which a probe is fitted at one level."""

    embed_s: float
    fit_s: float


class Everything(NamedTuple):
    """What was measured; None: there was no time.

    Attributes:
        accuracies: by kNN with one voter, kNN and the linear probe.
        ranks: of random weights and of the checkpoint, measured on ``num_ranked`` training images.
        map: panels of a map, and the groups that give them their colours.
        left_out: name and reason of what there was no time for.
        seconds: that all of it took.
    """

    accuracies: Sequence[Comparison]
    ranks: Sequence[RankRow] | None
    num_ranked: int
    map: tuple[Sequence[Panel], Groups] | None
    left_out: dict[str, str]
    seconds: float


class _Clock:
    """The time that is left."""

    def __init__(self, seconds: float) -> None:
        self._began, self._seconds = time.monotonic(), seconds
        self.left_out = dict[str, str]()

    @property
    def passed_s(self) -> float:
        return time.monotonic() - self._began

    @property
    def left_s(self) -> float:
        return max(0.0, self._seconds - self.passed_s)

    def allows(self, name: str, expected_s: float) -> bool:
        """Return whether a part that is expected to take so long fits, and note its name where it does not."""
        if _CAUTION * expected_s <= self.left_s:
            return True
        self.left_out[name] = f"it takes about {expected_s:.0f} s, and {self.left_s:.0f} s were left"
        return False


def measure(found: Checkpoint, pair: tuple[Labelled, Labelled], seconds: float, bar: Bar) -> Everything:
    """Measure a checkpoint's encoder in about so many seconds.

    With labels: kNN with 1 and 20 voters and a linear probe, of the backbone and of the head's levels, beside random
    weights; of the training labels as many as fit. Without: the ranks of ``rank.Ranks``, and a map.

    Args:
        pair: training images, test images.
    """
    clock, (known, asked) = _Clock(seconds - min(_PICTURES_S, _FOR_PICTURES * seconds)), pair
    levels = levels_that_fit(found.config)
    costs = _costs(found, known, levels)
    allowed = _FOR_LABELS * seconds - clock.passed_s
    number = _affordable(costs, known, asked, len(levels), allowed)
    with_probe = clock.allows("linear probe", 2 * len(levels) * number * costs.fit_s)
    if not with_probe:
        number = _affordable(costs._replace(fit_s=0.0), known, asked, len(levels), allowed)
    if number < len(known.ids):
        clock.left_out["further training labels"] = f"{number:,} of {len(known.ids):,} fit"
    labels = None if number == len(known.ids) else str(number)
    with bar("embedding for accuracies") as progress:
        protocols: list[EvaluationProtocol] = [Knn(1), Knn(min(20, number)), *([Linear()] if with_probe else [])]
        accuracies = compare_on(found, pair, protocols, Options(features=levels, labels=labels), progress)
    ranks = map_ = None
    mapped = drawn(_MAPPED, len(asked.store), 0, asked.store.labels)
    for_map, each = len(mapped) * (_MAP_S + costs.embed_s), 2 * (LIDAR_VIEWS + 1) * costs.embed_s
    fit = math.floor(max(0.0, clock.left_s / _CAUTION - for_map) / each)
    ranked = drawn(min(_RANKED, max(fit, _FEWEST_RANKED)), len(known.store), 0)
    if clock.allows("ranks", len(ranked) * each):
        with bar("embedding views for ranks") as progress:
            ranks = rank_curve([found], known.store, ranked, views=LIDAR_VIEWS, seed=0, progress=progress)
    if len(mapped) < _FEWEST_MAPPED:
        clock.left_out["map"] = f"{asked.store.name} has {len(mapped)} images"
    elif clock.allows("map", for_map):
        with bar("embedding for a map") as progress:
            map_ = _map(found, asked.store, mapped, progress)
    return Everything(accuracies, ranks, len(ranked) if ranks else 0, map_, clock.left_out, clock.passed_s)


def _costs(found: Checkpoint, known: Labelled, levels: Sequence[str]) -> Costs:
    """Time the embedding of a few images and the fit of a probe to them, whose time grows with the classes."""
    classes = np.unique(known.labels)
    some = known.at(np.flatnonzero(np.isin(known.labels, classes[:_TIMED_CLASSES])))
    count = min(len(some.ids), _TIMED)
    few = some.at(draw(some.labels, str(count), 0, known.store.class_names))
    method, one = load_method(found), few.at(np.arange(1))
    embed_pair(method, found, (few.at(np.arange(min(_WARM_UP, count))), one), levels)
    began = time.monotonic()
    features = next(iter(embed_pair(method, found, (few, one), levels).values()))
    embedded = time.monotonic()
    Linear().answer(features[0], few.labels, features[1], 0)
    more_classes = len(classes) / min(len(classes), _TIMED_CLASSES)
    return Costs((embedded - began) / count, more_classes * (time.monotonic() - embedded) / count)


def _affordable(costs: Costs, known: Labelled, asked: Labelled, num_levels: int, seconds: float) -> int:
    """Return how many training labels the accuracies can have: of two encoders, at several levels."""
    fixed = 2 * len(asked.ids) * costs.embed_s
    each = 2 * (costs.embed_s + num_levels * costs.fit_s)
    most = math.floor(max(0.0, seconds / _CAUTION - fixed) / each)
    fewest = min(len(known.ids), 2 * len(np.unique(known.labels)))
    return min(len(known.ids), max(fewest, most))


def _map(
    found: Checkpoint, store: ImageStore, ids: np.ndarray, progress: ProgressCallback
) -> tuple[Sequence[Panel], Groups]:
    """Make a map of some images, coloured by class."""
    settings = Settings("tsne", min(30.0, (len(ids) - 1) / 3), "class", 1, 0)
    settings.expect_possible(found.config, store.labels[ids], store.name)
    components, groups = embed_over_training([found], store, ids, settings, with_random=False, progress=progress)
    return layouts(components, settings, lambda text: None), groups
