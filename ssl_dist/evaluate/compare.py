"""Measure a run's features by a protocol, beside baselines by the same protocol, in the rows of one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ssl_dist.checkpoint import Checkpoint, locate
from ssl_dist.errors import ConfigError
from ssl_dist.evaluate.label_draw import draw
from ssl_dist.evaluate.labelled import Labelled, open_pair
from ssl_dist.evaluate.levels import BACKBONE, levels_of
from ssl_dist.evaluate.protocols import BASELINES, EvaluationProtocol, ProgressCallback
from ssl_dist.evaluate.scores import TOP, Accuracy, Answers, Difference
from ssl_dist.settings import CheckpointChoice

if TYPE_CHECKING:
    from torch import Tensor

    from ssl_dist.evaluate.contenders import Contender


_Try = tuple[Answers, dict[str, Any]]


class Options(NamedTuple):
    """What is compared, beside the run and the stores.

    Attributes:
        features, layers: see ``levels.levels_of``.
        baselines: some of ``protocols.BASELINES``.
        checkpoint: which one, where the run has several.
        seeds: how many times all that is random is repeated: random weights, and the draws of images.
        labels: how many training labels are used, see ``label_draw.draw``; None: all.
        seed: the first seed; random weights have the run's and this one together.
    """

    features: Sequence[str] = (BACKBONE,)
    layers: Sequence[str] = ()
    baselines: Sequence[str] = ("random",)
    checkpoint: CheckpointChoice = "newest"
    seeds: int = 1
    labels: str | None = None
    seed: int = 0


class Row(NamedTuple):
    """The accuracy of one encoder's features.

    Attributes:
        encoder, features: their names.
        dim: number of features.
        top1: mean accuracy over the repeats, with its interval over the test images.
        top5: the same of the five first classes; None where there are no more than five, or every answer
            names one class only.
        repeats: accuracy of each repeat; one entry where nothing is random.
        chosen: what was chosen on training images, of the first repeat.
        answers: of the first repeat.
        right: share of the repeats whose answer is right, float64 ``[q]``.
        difference: how far its top-1 accuracy is above the first row's; None in the first row.
    """

    encoder: str
    features: str
    dim: int
    top1: Accuracy
    top5: Accuracy | None
    repeats: Sequence[float]
    chosen: dict[str, Any]
    answers: Answers
    right: np.ndarray
    difference: Difference | None = None

    def plain(self) -> dict[str, Any]:
        """Return the row without the answers, for JSON."""
        beside = self.difference and {
            "difference": self.difference.value,
            "difference_interval": [self.difference.low, self.difference.high],
        }
        top5 = self.top5 and {"top5": self.top5.value, "top5_interval": [self.top5.low, self.top5.high]}
        return {
            "encoder": self.encoder,
            "features": self.features,
            "dim": self.dim,
            "top1": self.top1.value,
            "top1_interval": [self.top1.low, self.top1.high],
            **(beside or {}),
            **(top5 or {}),
            "repeats": list(self.repeats),
            "chosen": self.chosen,
        }


class Comparison(NamedTuple):
    """A run's features and its baselines, measured by one protocol.

    Attributes:
        rows: the run's own first, one for each level of features.
        step: of the checkpoint.
        name: of the protocol.
        train, test: the labelled images; of training ones those of the first draw.
        protocol: one sentence that says how the figures came about.
        answered: train features, test features of the run's first row; for a report.
    """

    name: str
    rows: Sequence[Row]
    step: int
    train: Labelled
    test: Labelled
    protocol: str
    answered: tuple[Tensor, Tensor]

    @property
    def trained(self) -> float:
        """Accuracy of the run's first row, in [0, 1]."""
        return self.rows[0].top1.value

    @property
    def random(self) -> float | None:
        """Accuracy of random weights with the same features as the first row; None where they were not compared."""
        wanted = ("random weights", self.rows[0].features)
        return next((row.top1.value for row in self.rows if (row.encoder, row.features) == wanted), None)

    def plain(self) -> dict[str, Any]:
        """Return all that the table says, for JSON."""
        facts = {
            "evaluation": self.name,
            "step": self.step,
            "num_train": len(self.train.ids),
            "num_test": len(self.test.ids),
        }
        rows = [row.plain() for row in self.rows]
        return {"trained": self.trained, "random": self.random, **facts, "rows": rows, "protocol": self.protocol}


def compare(
    run: Path,
    train: str | Path,
    test: str | Path,
    protocol: EvaluationProtocol,
    options: Options = Options(),  # noqa: B008 (it is immutable)
    progress: ProgressCallback | None = None,
) -> Comparison:
    """Measure a run's features on the labelled images of two stores, beside baselines; see ``compare_by``."""
    return compare_by(run, train, test, [protocol], options, progress)[0]


def compare_by(
    run: Path,
    train: str | Path,
    test: str | Path,
    protocols: Sequence[EvaluationProtocol],
    options: Options = Options(),  # noqa: B008 (it is immutable)
    progress: ProgressCallback | None = None,
) -> Sequence[Comparison]:
    """Measure a run's features by several protocols, for which images are embedded once.

    Whatever is wrong with the arguments is said before anything is embedded.

    Args:
        run: the run's directory, its folder of checkpoints, or one checkpoint.
        train, test: stores to learn from and to measure on.
        progress: called with (images embedded, images in all).

    Raises:
        RunError: no usable checkpoint, or its network does not have the features.
        StoreError: the stores do not fit, see ``labelled.open_pair``.
        ConfigError: the options or the protocol's settings are out of range.
    """
    found = locate(run, options.checkpoint)
    pair = open_pair(train, test, found.config.data, found.config.facts.image_shape)
    return compare_on(found, pair, protocols, options, progress)


def compare_on(
    found: Checkpoint,
    pair: tuple[Labelled, Labelled],
    protocols: Sequence[EvaluationProtocol],
    options: Options = Options(),  # noqa: B008 (it is immutable)
    progress: ProgressCallback | None = None,
) -> Sequence[Comparison]:
    """Measure a checkpoint's features, as ``compare`` does, by several protocols; images are embedded once.

    Args:
        pair: training images, test images.
    """
    for name in options.baselines:
        if name not in BASELINES:
            raise ConfigError(f"--baselines {name}: it is some of {', '.join(BASELINES)}, or none alone")
    levels = levels_of(found.config, options.features, options.layers)
    known, asked = pair
    seeds = range(options.seed, options.seed + options.seeds)
    draws = [_drawn(known, options.labels, seed) for seed in (seeds if options.labels else seeds[:1])]
    for drawn in draws:
        for protocol in protocols:
            protocol.check(known.labels[drawn])
    used = np.unique(np.concatenate(draws))
    tries = _Tries(known.at(used), asked, [np.searchsorted(used, one) for one in draws], seeds)
    from ssl_dist.evaluate.contenders import contenders  # imports torch: a mistake is told before

    rows, answered = [list[Row]() for _ in protocols], None
    for contender in contenders(found, (tries.known, asked), levels, options.baselines, seeds, progress):
        more, features = tries.rows(contender, protocols)
        for mine, new in zip(rows, more, strict=True):
            mine.extend(new)
        answered = answered or features
    assert answered
    learned = known.at(draws[0])
    return [
        Comparison(
            p.name,
            _with_differences(mine),
            found.step,
            learned,
            asked,
            _sentence(p, mine, options, found, known, learned, asked),
            answered,
        )
        for p, mine in zip(protocols, rows, strict=True)
    ]


def _with_differences(rows: Sequence[Row]) -> Sequence[Row]:
    """Return the rows, of which each but the first has its difference from the first."""
    first, *others = rows
    return [first, *(row._replace(difference=Difference.between(row.right, first.right)) for row in others)]


def _drawn(known: Labelled, wanted: str | None, seed: int) -> np.ndarray:
    """Return the rows of the labelled images of one draw, int64."""
    if wanted is None:
        return np.arange(len(known.ids))
    return draw(known.labels, wanted, seed, known.store.class_names)


class _Tries(NamedTuple):
    """The repeats of a comparison.

    Attributes:
        known: all training images of any draw; asked: the test images.
        draws: rows of ``known`` that a repeat learns from; a single one serves all repeats.
        seeds: one of each repeat.
    """

    known: Labelled
    asked: Labelled
    draws: Sequence[np.ndarray]
    seeds: Sequence[int]

    def rows(
        self, contender: Contender, protocols: Sequence[EvaluationProtocol]
    ) -> tuple[list[list[Row]], tuple[Tensor, Tensor]]:
        """Return a contender's rows by each protocol, one a level; and its features of the first level and repeat."""
        varies = contender.draws > 1 or len(self.draws) > 1
        first = features = contender.features(0)
        tries = [{level: list[_Try]() for level in features} for _ in protocols]
        for number, seed in enumerate(self.seeds):
            if 0 < number < contender.draws:
                features = contender.features(number)
            rows = self.draws[number % len(self.draws)]
            for protocol, by_level in zip(protocols, tries, strict=True):
                if number == 0 or varies or protocol.is_random:
                    for level, (known, asked) in features.items():
                        by_level[level].append(protocol.answer(known[rows], self.known.labels[rows], asked, seed))
        known, asked = next(iter(first.values()))
        dims = {level: part.shape[1] for level, (part, _) in first.items()}
        made = [[self._row(contender.name, level, dims[level], some) for level, some in by.items()] for by in tries]
        return made, (known[self.draws[0]], asked)

    def _row(self, encoder: str, level: str, dim: int, tries: Sequence[_Try]) -> Row:
        truth = self.asked.labels
        first = [answers.right(truth) for answers, _ in tries]
        top5 = None
        if len(self.known.store.class_names) > TOP and (tries[0][0].classes[:, 1] >= 0).any():
            top5 = Accuracy.mean([answers.right(truth, TOP) for answers, _ in tries])
        values = [float(right.mean()) for right in first]
        right = np.mean(first, axis=0)
        return Row(encoder, level, dim, Accuracy.mean(first), top5, values, tries[0][1], tries[0][0], right)


def _sentence(
    protocol: EvaluationProtocol,
    rows: Sequence[Row],
    options: Options,
    found: Checkpoint,
    known: Labelled,
    learned: Labelled,
    asked: Labelled,
) -> str:
    best = ", the one with the best online probe" if options.checkpoint == "best" else ""
    part = "" if options.labels is None else f"{len(learned.ids):,} labels, drawn from each class, of "
    repeats = max(len(row.repeats) for row in rows)
    seeds = f"; {repeats} seeds of what is random" if repeats > 1 else ""
    seeds += f", the first {options.seed}" if seeds and options.seed else ""
    paired = "; a difference is from the first row, and its interval of a paired bootstrap" if len(rows) > 1 else ""
    return (
        f"Accuracy on {asked.what}, learned from {part}{known.what}: {protocol.sentence()}. Checkpoint of step"
        f" {found.step}{best}{seeds}. Intervals are 95 % bootstrap intervals over the test images{paired}."
    )
