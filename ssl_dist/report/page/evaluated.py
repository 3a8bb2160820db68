"""What ``evaluate all`` wrote beside a run, for a page: figures, answers class by class, images, a map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ssl_dist.evaluate.scores import Difference, spread

_SHOWN_CLASSES = 5  # best ones and worst ones
_SHOWN_PAIRS = 8  # that are confused most often
_WHOLE_MATRIX = 16  # classes, at most


class Row(NamedTuple):
    """The accuracy of an encoder's features, in [0, 1], with its interval; ``spread`` of several seeds.

    ``encoder`` is without the steps that it was trained for: the page says them once. ``difference`` is from the first
    row; None in evaluations of versions that had none.
    """

    encoder: str
    features: str
    dim: int
    top1: float
    low: float
    high: float
    top5: float | None
    spread: float | None
    difference: Difference | None

    @classmethod
    def of(cls, row: dict[str, Any]) -> Row:
        low, high = map(float, row["top1_interval"])
        top5 = None if row.get("top5") is None else float(row["top5"])
        seeds = spread([float(one) for one in row["repeats"]])
        apart = None
        if row.get("difference") is not None:
            apart = Difference(*map(float, (row["difference"], *row["difference_interval"])))
        return cls(
            str(row["encoder"]).partition(",")[0],
            str(row["features"]),
            int(row["dim"]),
            float(row["top1"]),
            low,
            high,
            top5,
            seeds,
            apart,
        )


class Accuracy(NamedTuple):
    """One protocol's rows, the run's own first; ``random`` is the accuracy of random weights with its features."""

    name: str
    num_train: int
    num_test: int
    protocol: str
    rows: Sequence[Row]
    random: float | None

    @classmethod
    def of(cls, one: dict[str, Any]) -> Accuracy:
        rows = [Row.of(row) for row in one["rows"]]
        random = None if one["random"] is None else float(one["random"])
        rows[0]  # there is one at least
        return cls(
            str(one["evaluation"]), int(one["num_train"]), int(one["num_test"]), str(one["protocol"]), rows, random
        )


class Evaluated(NamedTuple):
    """RUN/evaluation.json.

    Attributes:
        step: of the checkpoint.
        ranks: measures without labels by name, of random weights (step None) and of the checkpoint.
        left_out: what there was no time for, and why.
        stores: that it learned from and measured on; None in evaluations of versions that did not note them.
    """

    step: int
    accuracies: Sequence[Accuracy]
    ranks: Sequence[tuple[int | None, Mapping[str, float]]]
    ranked_images: int
    left_out: Mapping[str, str]
    stores: tuple[str, str] | None

    @classmethod
    def of(cls, tree: dict[str, Any]) -> Evaluated:
        return cls(
            step=int(tree["step"]),
            accuracies=[Accuracy.of(one) for one in tree["accuracies"]],
            ranks=[
                (row["step"], {key: float("nan") if value is None else float(value) for key, value in row.items()})
                for row in tree["ranks"]
            ],
            ranked_images=int(tree["ranked_images"]),
            left_out={str(name): str(reason) for name, reason in tree["left_out"].items()},
            stores=(str(tree["train"]), str(tree["test"])) if "train" in tree else None,
        )


class ClassRow(NamedTuple):
    """A class, with its share of right answers, the share of right ones where it was given, and its test images."""

    name: str
    recall: float
    precision: float
    images: int


class PerClass(NamedTuple):
    """RUN/evaluation/classification.json.

    Attributes:
        classes: by recall, the best first.
        names, shares: true class by given class, of the images of each true class; empty where the classes are many.
        pairs: true class, given class and share of the true class's images, the most frequent first.
        summary: where wrong answers lie.
    """

    classes: Sequence[ClassRow]
    names: Sequence[str]
    shares: Sequence[Sequence[float]]
    pairs: Sequence[tuple[str, str, float]]
    summary: str

    @classmethod
    def of(cls, tree: dict[str, Any]) -> PerClass:
        rows = [
            ClassRow(str(name), float(one["recall"]), float(one["precision"]), int(one["support"]))
            for name, one in tree["classes"].items()
        ]
        names = [str(name) for name in tree["class_names"]]
        counts = [[int(number) for number in row] for row in tree["confusion"]]
        shares = [[number / max(1, sum(row)) for number in row] for row in counts]
        pairs = [
            (names[true], names[given], share)
            for true, row in enumerate(shares)
            for given, share in enumerate(row)
            if true != given and share
        ]
        few = len(names) <= _WHOLE_MATRIX
        return cls(
            classes=sorted(
                (row for row in rows if row.images), key=lambda row: (-row.recall, -row.precision, row.name)
            ),
            names=names if few else [],
            shares=shares if few else [],
            pairs=sorted(pairs, key=lambda pair: -pair[2])[:_SHOWN_PAIRS],
            summary=str(tree["summary"]),
        )

    @property
    def best_and_worst(self) -> Sequence[Sequence[ClassRow]]:
        """All classes where they are few, else the best ones and the worst ones."""
        if len(self.classes) <= 2 * _SHOWN_CLASSES:
            return [self.classes]
        return [self.classes[:_SHOWN_CLASSES], self.classes[-_SHOWN_CLASSES:]]


class Shown(NamedTuple):
    """An image: base64 of a JPEG, its key, a class, and what is said of it.

    Attributes:
        label: its class; of a mistake, the class that it was given.
        detail: of a mistake its true class, of a neighbour its similarity.
        sure: confidence of a mistake as text.
        right: whether a neighbour has the class of the image that it is near to.
    """

    thumbnail: str
    key: str
    label: str
    detail: str = ""
    right: bool = False
    sure: str = ""


class MapOfFeatures(NamedTuple):
    """A map of test images: places in [0, side], group by number."""

    title: str
    groups: Sequence[str]
    group: Sequence[int]
    x: Sequence[int]
    y: Sequence[int]
    side: int


class Gallery(NamedTuple):
    """RUN/evaluation/gallery.json: confident mistakes, images with their nearest training images, and a map.

    Attributes:
        small: whether images are so small that they are shown enlarged, with hard edges.
    """

    small: bool
    mistakes: Sequence[Shown]
    neighbours: Sequence[tuple[Shown, Sequence[Shown]]]
    map: MapOfFeatures | None

    @classmethod
    def of(cls, tree: dict[str, Any]) -> Gallery:
        mistakes = [
            Shown(
                thumbnail=str(one["thumbnail"]),
                key=str(one["key"]),
                label=str(one["given"]),
                detail=str(one["true"]),
                sure=f"{float(one['confidence']):.0%}",
            )
            for one in tree["mistakes"]
        ]
        neighbours = [
            (_shown(one), [_shown(near, f"{float(near['similarity']):.2f}", one["label"]) for near in one["nearest"]])
            for one in tree["neighbours"]
        ]
        return cls(bool(tree["small"]), mistakes, neighbours, tree["map"] and _map(tree["map"]))


def _shown(one: dict[str, Any], detail: str = "", of: str | None = None) -> Shown:
    return Shown(str(one["thumbnail"]), str(one["key"]), str(one["label"]), detail, right=one["label"] == of)


def _map(tree: dict[str, Any]) -> MapOfFeatures:
    group, x, y = ([int(one) for one in tree[name]] for name in ("group", "x", "y"))
    groups = [str(name) for name in tree["groups"]]
    if not len(group) == len(x) == len(y) or max(group) >= len(groups):
        raise ValueError("a map has as many groups as places")
    return MapOfFeatures(str(tree["title"]), groups, group, x, y, int(tree["side"]))
