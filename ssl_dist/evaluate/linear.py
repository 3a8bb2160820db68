"""A linear probe: logistic regression on features, whose penalty is chosen on a part of the training images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from ssl_dist.evaluate.classifier_settings import HELD_OUT, PENALTIES, expect_two_classes
from ssl_dist.evaluate.label_draw import held_out
from ssl_dist.evaluate.logistic_regression import LogisticRegression
from ssl_dist.evaluate.scores import Answers


class LinearProbe(NamedTuple):
    """What a linear probe answers.

    Attributes:
        answers: about the test images.
        l2: the penalty, as it was given or chosen.
        held_out: accuracy of each penalty that was tried on held-out training images; empty where one was given.
    """

    answers: Answers
    l2: float
    held_out: dict[float, float]


def linear_probe(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    *,
    l2: float | None = None,
    standardise: bool = True,
    seed: int = 0,
) -> LinearProbe:
    """Fit multinomial logistic regression on features, on one CPU core, and classify others.

    It minimises the mean cross-entropy + l2/2 |weights|². Without ``l2``, each of ``PENALTIES`` is fitted to four
    fifths of the training images and measured on the others; the best one (of equal ones the largest) is then fitted to
    all of them. Test images take no part in the choice.

    Args:
        train, test: ``[n, D]``; train_labels: int64 ``[n]``.
        l2: > 0 (scikit-learn's C is 1 / (l2 n)); None: it is chosen.
        standardise: scale each feature to mean 0 and variance 1 on the training images.
        seed: of the draw of the held-out images, which has as large a share of each class.

    Raises:
        ConfigError: the training labels have fewer than two classes, or l2 <= 0.
    """
    labels = train_labels.cpu().numpy()
    expect_two_classes(labels, l2)
    x, queries = (features.cpu().numpy().astype(np.float64) for features in (train, test))
    tried = _try(x, labels, standardise, seed) if l2 is None else {}
    chosen = l2 if l2 is not None else max(tried, key=lambda penalty: (tried[penalty], penalty))
    x, queries = _scaled(x, queries, standardise)
    classifier = LogisticRegression.fit(x, labels, chosen)
    votes = np.zeros((len(queries), int(labels.max()) + 1))
    votes[:, classifier.classes] = classifier.probabilities(queries)
    return LinearProbe(Answers.of(votes), chosen, tried)


def _try(x: np.ndarray, labels: np.ndarray, standardise: bool, seed: int) -> dict[float, float]:
    """Return the accuracy of each penalty on held-out training images, which the fits do not see."""
    out = held_out(labels, HELD_OUT, seed)
    mine, queries = _scaled(x[~out], x[out], standardise)
    classifier, found = None, {}
    for penalty in sorted(PENALTIES, reverse=True):
        classifier = LogisticRegression.fit(mine, labels[~out], penalty, start=classifier)
        found[penalty] = float((classifier.predict(queries) == labels[out]).mean())
    return found


def _scaled(x: np.ndarray, queries: np.ndarray, standardise: bool) -> tuple[np.ndarray, np.ndarray]:
    if not standardise:
        return x, queries
    # here: scikit-learn takes 80 MB, which the workers of most runs need not hold
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x)
    return scaler.transform(x), scaler.transform(queries)


def linear_accuracy(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, *, l2: float = 1e-3
) -> float:
    """Return the test accuracy in [0, 1] of ``linear_probe`` with one penalty; test_labels: int64 ``[q]``."""
    answers = linear_probe(train, train_labels, test, l2=l2).answers
    return float(np.mean(answers.right(test_labels.cpu().numpy())))
