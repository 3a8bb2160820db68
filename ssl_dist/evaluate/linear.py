"""Linear probe: multinomial logistic regression on frozen, standardised features."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from ssl_dist.errors import ConfigError


def linear_accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    l2: float = 1e-3,
    max_iterations: int = 300,
) -> float:
    """Return the test accuracy of the regression that minimises mean cross entropy + l2/2 |weights|^2 in training.

    Args:
        train, test: ``[n, D]``; labels int64 ``[n]``.
        l2: weight of the penalty, > 0 (scikit-learn's C is 1 / (l2 n)).
        max_iterations: upper bound of L-BFGS's iterations.

    Returns:
        Accuracy in [0, 1].

    Raises:
        ConfigError: the training labels have fewer than two classes, or l2 <= 0.
    """
    if len(train_labels.unique()) < 2:
        raise ConfigError("linear probe: the training store has fewer than two classes")
    if not l2 > 0:
        raise ConfigError(f"l2 {l2}: it must be greater than 0")
    regression = LogisticRegression(C=1 / (l2 * len(train)), max_iter=max_iterations)
    probe = make_pipeline(StandardScaler(), regression)
    probe.fit(train.cpu().numpy().astype(np.float64), train_labels.cpu().numpy())
    return float(probe.score(test.cpu().numpy().astype(np.float64), test_labels.cpu().numpy()))
