"""A closer look at a classifier's answers: per class, which classes are confused, and where wrong answers lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ssl_dist.evaluate.compare import Comparison

if TYPE_CHECKING:
    from torch import Tensor


_FIGURES = ("precision", "recall", "f1-score", "support")


class CentreRanks(NamedTuple):
    """Where wrongly classified images lie: ranks of classes by the distance to their centres, 1 is the nearest.

    Attributes:
        wrong: number of wrong answers that are counted.
        given_nearest: share of them whose given class has the nearest centre.
        true_second: share whose true class is among the two nearest.
        mean_true: mean rank of the true class.
        mean_true_by_chance: what it would be if all classes but the given one were as likely.
    """

    wrong: int
    given_nearest: float
    true_second: float
    mean_true: float
    mean_true_by_chance: float

    def __str__(self) -> str:
        return (
            f"Of {self.wrong:,} wrong answers, {self.given_nearest:.0%} give the class whose centre is nearest, and the"
            f" true class is one of the two nearest for {self.true_second:.0%}; its mean rank is {self.mean_true:.1f}"
            f" (by chance {self.mean_true_by_chance:.1f})."
        )


class Mistakes(NamedTuple):
    """What the answers of a comparison's first row look like, in K classes.

    Attributes:
        names: of the classes, training store's first.
        text: scikit-learn's classification report.
        per_class: precision, recall, F1 score and number of test images by class name.
        confusion: int64 ``[K, K]``, true class by given class.
        wrong: int64, rows of the test images that were classified wrongly, the most confident first.
        centres: where these lie; None where no answer is wrong.
    """

    names: Sequence[str]
    text: str
    per_class: dict[str, dict[str, float]]
    confusion: np.ndarray
    wrong: np.ndarray
    centres: CentreRanks | None

    @property
    def summary(self) -> str:
        """One sentence that says where wrong answers lie."""
        return str(self.centres or "No answer is wrong.")

    @classmethod
    def of(cls, result: Comparison) -> Mistakes:
        """Look at the answers of the run's first row."""
        from sklearn.metrics import classification_report, confusion_matrix, precision_recall_fscore_support

        answers, truth = result.rows[0].answers, result.test.labels
        given, names = answers.classes[:, 0], _class_names(result)
        there = [number for number in range(len(names)) if (truth == number).any() or (given == number).any()]
        options: dict[str, Any] = {"labels": there, "zero_division": 0}
        text = classification_report(truth, given, digits=3, target_names=[names[n] for n in there], **options)
        figures = zip(*precision_recall_fscore_support(truth, given, **options), strict=True)
        per_class = {
            names[n]: dict(zip(_FIGURES, map(float, some), strict=True)) for n, some in zip(there, figures, strict=True)
        }
        rows = np.flatnonzero(given != truth)
        rows = rows[np.argsort(-answers.confidence[rows], kind="stable")]
        centres = centre_ranks(*result.answered, result.train.labels, truth, given)
        confusion = confusion_matrix(truth, given, labels=range(len(names)))
        return cls(names, str(text), per_class, confusion, rows, centres)


def _class_names(result: Comparison) -> list[str]:
    """Return the training store's classes, then those that only the test store has."""
    train, test = (some.store.class_names for some in (result.train, result.test))
    return [*train, *(name for name in test if name not in train)]


def centre_ranks(
    train: Tensor, test: Tensor, train_labels: np.ndarray, truth: np.ndarray, given: np.ndarray
) -> CentreRanks | None:
    """Rank the true and the given class of wrongly classified images by the distance to the classes' centres.

    A centre is the mean of a class' training features, each scaled to length 1; nearest is the largest cosine. Images
    of classes that the training images lack are left out.

    Args:
        train, test: features ``[n, D]`` and ``[q, D]``.
        train_labels: int64 ``[n]``; truth, given: int64 ``[q]``.
    """
    import torch
    from torch.nn.functional import normalize

    classes = np.unique(train_labels)
    unit = normalize(train.double(), dim=1)
    centres = torch.stack([unit[torch.from_numpy(np.flatnonzero(train_labels == c))].mean(0) for c in classes])
    rows = np.flatnonzero((given != truth) & np.isin(truth, classes))
    if not len(rows):
        return None
    similarity = normalize(test[torch.from_numpy(rows)].double(), dim=1) @ normalize(centres, dim=1).T
    order = np.argsort(-similarity.numpy(), axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(1, len(classes) + 1)[None].repeat(len(rows), 0), 1)
    of_true, of_given = (
        np.take_along_axis(ranks, np.searchsorted(classes, some[rows])[:, None], 1)[:, 0] for some in (truth, given)
    )
    # the true class takes any place but the given one's: the mean of 1 .. K without that
    total = len(classes) * (len(classes) + 1) / 2
    by_chance = float(((total - of_given) / (len(classes) - 1)).mean())
    return CentreRanks(
        len(rows), float((of_given == 1).mean()), float((of_true <= 2).mean()), float(of_true.mean()), by_chance
    )
