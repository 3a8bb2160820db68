"""Logistic regression reaches scikit-learn's optimum, with the same bits on any number of threads, and says nothing."""

from __future__ import annotations

import logging
import warnings
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression as Reference
from threadpoolctl import threadpool_limits

from ssl_dist.evaluate import linear_accuracy, logistic_regression
from ssl_dist.evaluate.classifier_settings import HELD_OUT, PENALTIES
from ssl_dist.evaluate.label_draw import held_out
from ssl_dist.evaluate.linear import linear_probe
from ssl_dist.evaluate.logistic_regression import LogisticRegression


class Case(NamedTuple):
    """Clusters of standardised features with a common part, the larger, the worse the condition."""

    num_images: int = 300
    num_features: int = 20
    classes: tuple[int, ...] = (0, 1, 2, 3)
    spread: float = 2.0
    common: float = 0.0
    l2: float = 1e-3

    def data(self, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng(seed)
        numbers = random.integers(0, len(self.classes), self.num_images)
        numbers[: len(self.classes)] = np.arange(len(self.classes))
        centres = np.random.default_rng(9).normal(size=(len(self.classes), self.num_features))
        x = centres[numbers] + self.spread * random.normal(size=(self.num_images, self.num_features))
        x += self.common * random.normal(size=(self.num_images, 1))
        return (x - x.mean(0)) / x.std(0), np.array(self.classes)[numbers]


CASES = {
    "four classes": Case(),
    "two classes": Case(classes=(0, 1)),
    "two classes, neither of them 0": Case(classes=(2, 7)),
    "numbers with gaps": Case(classes=(1, 4, 5)),
    "features that are nearly equal": Case(common=30.0),
    "more features than images": Case(num_images=40, num_features=90),
    "classes that a plane separates": Case(spread=0.1),
    "a weak penalty": Case(l2=1e-5),
    "a strong penalty": Case(l2=1.0),
}


def objective(x: np.ndarray, labels: np.ndarray, weight: np.ndarray, bias: np.ndarray, l2: float) -> float:
    scores = x @ weight + bias
    numbers = np.unique(labels, return_inverse=True)[1]
    losses = logsumexp(scores, axis=1) - scores[np.arange(len(x)), numbers]
    return float(losses.mean() + l2 / 2 * np.square(weight).sum())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_it_reaches_scikit_learns_optimum(case: Case) -> None:
    x, labels = case.data()
    ours = LogisticRegression.fit(x, labels, case.l2)
    theirs = Reference(C=1 / (case.l2 * len(x)), tol=1e-10, max_iter=100_000).fit(x, labels)
    weight, bias = theirs.coef_.T, theirs.intercept_
    if len(case.classes) == 2:
        weight, bias = np.pad(weight, ((0, 0), (1, 0))), np.pad(bias, (1, 0))
    found, best = (objective(x, labels, *each, case.l2) for each in ((ours.weight, ours.bias), (weight, bias)))
    assert found <= best * (1 + 1e-6)
    test, _ = case.data(seed=1)
    differing = ours.predict(test) != theirs.predict(test)
    assert differing.mean() <= 0.005, "an image on the border"


def test_the_number_of_threads_does_not_change_a_bit() -> None:
    x, labels = Case(num_images=2000, num_features=64).data()
    found = []
    for threads in (1, 2, 4):
        with threadpool_limits(threads):
            found.append(LogisticRegression.fit(x, labels, 1e-3))
    for other in found[1:]:
        assert np.array_equal(other.weight, found[0].weight)
        assert np.array_equal(other.bias, found[0].bias)


def test_no_warning_of_a_library_reaches_the_person(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    x, labels = (torch.from_numpy(each) for each in Case(common=30.0).data())
    x[:, 3] = 1.0  # a constant feature
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        linear_accuracy(x, labels, x, labels)
        assert not caplog.records
        monkeypatch.setattr(logistic_regression, "_MAX_ITERATIONS", 3)
        with caplog.at_level(logging.WARNING):
            linear_accuracy(x, labels, x, labels)
    assert [record.getMessage() for record in caplog.records] == [
        "linear probe: not at its optimum after 3 iterations: a larger --l2 helps"
    ]


def test_a_shift_of_the_features_changes_nothing() -> None:
    """The penalty leaves the bias alone, so the optimum is that of centred features (measured before: +0.04)."""
    case = CASES["four classes"]
    x, labels = case.data()
    shifted = x + np.linspace(-1e4, 1e4, x.shape[1])
    near, far = LogisticRegression.fit(x, labels, case.l2), LogisticRegression.fit(shifted, labels, case.l2)
    losses = [objective(one, labels, found.weight, found.bias, case.l2) for one, found in ((x, near), (shifted, far))]
    assert losses[0] == pytest.approx(losses[1], abs=1e-7)
    np.testing.assert_allclose(near.probabilities(x), far.probabilities(shifted), atol=1e-4)  # both stop near it


def test_probabilities_are_scikit_learns() -> None:
    case = CASES["numbers with gaps"]
    (x, labels), (queries, _) = case.data(), case.data(seed=1)
    found = LogisticRegression.fit(x, labels, case.l2).probabilities(queries)
    reference = Reference(C=1 / (case.l2 * len(x)), tol=1e-10, max_iter=10_000).fit(x, labels)
    np.testing.assert_allclose(found, reference.predict_proba(queries), atol=1e-4)  # both stop near the optimum


def test_a_penalty_is_chosen_on_training_images_alone() -> None:
    """Scikit-learn's fits on the same part agree on each penalty, and the best one (the largest) is fitted to all."""
    (x, labels), (queries, _) = (
        Case(num_images=400, num_features=60, spread=6.0).data(),
        Case(num_features=60, spread=6.0).data(seed=1),
    )
    train, test = torch.from_numpy(x), torch.from_numpy(queries)
    found = linear_probe(train, torch.from_numpy(labels), test, standardise=False, seed=5)
    out = held_out(labels, HELD_OUT, 5)
    expected = {}
    for l2 in PENALTIES:
        reference = Reference(C=1 / (l2 * (~out).sum()), tol=1e-8, max_iter=10_000).fit(x[~out], labels[~out])
        expected[l2] = float((reference.predict(x[out]) == labels[out]).mean())
    assert found.held_out == pytest.approx(expected, abs=1.5 / out.sum())  # an image may lie on the border
    assert len(set(expected.values())) > 1
    best = max(found.held_out.values())
    assert found.l2 == max(l2 for l2, value in found.held_out.items() if value == best)
    alone = linear_probe(train, torch.from_numpy(labels), test, standardise=False, l2=found.l2)
    np.testing.assert_array_equal(found.answers.classes, alone.answers.classes)
