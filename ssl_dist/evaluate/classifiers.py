"""Accuracy of simple classifiers on frozen features: weighted k nearest neighbours, and a linear probe."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ssl_dist.errors import ConfigError
from ssl_dist.evaluate.labelled import expect_two_classes, expect_voters
from ssl_dist.evaluate.logistic_regression import LogisticRegression

_KNN_CHUNK = 512  # queries at once
_KNN_LARGEST = 1 << 27  # similarities at once


def knn_accuracy(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor, *, k: int = 20, temperature: float = 0.1
) -> float:
    """Return the share of queries whose label wins the vote of their k nearest bank features.

    Similarity s is the cosine, and votes are weighted by exp(s / temperature).

    Args:
        bank: ``[n, D]``; bank_labels: int64 ``[n]`` in [0, K).
        queries: ``[q, D]``; query_labels: int64 ``[q]``.
        k: voters, 1 .. n.
        temperature: greater than 0.

    Returns:
        Accuracy in [0, 1]; a tie goes to the class of the lower number.

    Raises:
        ConfigError: k or the temperature is out of range, or there is no query.

    Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", arXiv 1805.01978,
        section 3.4, which has 200 voters and a temperature of 0.07. Its code, zhirongw/lemniscate.pytorch, has 0.1 for
        CIFAR-10 (cifar.py), the default here.
    """
    expect_voters(bank_labels, k, temperature)
    if not len(queries):
        raise ConfigError("kNN: there is no query image")
    bank = normalize(bank.float(), dim=1)
    num_classes, right = int(bank_labels.max()) + 1, 0
    chunk = max(1, min(_KNN_CHUNK, _KNN_LARGEST // len(bank)))
    for part, truth in zip(queries.split(chunk), query_labels.split(chunk), strict=True):
        similarity, nearest = (normalize(part.float(), dim=1) @ bank.T).topk(k, dim=1)  # [q, k]
        weight = ((similarity - 1) / temperature).exp()
        votes = torch.zeros(len(part), num_classes, device=part.device).scatter_add_(1, bank_labels[nearest], weight)
        right += int((votes.argmax(1) == truth).sum())
    return right / len(queries)


def linear_accuracy(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, *, l2: float = 1e-3
) -> float:
    """Return the test accuracy of multinomial logistic regression on standardised features.

    It minimises the mean cross entropy + l2/2 |weights|^2 on the training features, on one CPU core.

    Args:
        train, test: ``[n, D]``; labels int64 ``[n]``.
        l2: weight of the penalty, > 0 (scikit-learn's C is 1 / (l2 n)).

    Returns:
        Accuracy in [0, 1].

    Raises:
        ConfigError: the training labels have fewer than two classes, or l2 <= 0.
    """
    # here: scikit-learn takes 80 MB, which the workers of most runs need not hold
    from sklearn.preprocessing import StandardScaler

    labels = train_labels.cpu().numpy()
    expect_two_classes(labels, l2)
    scaler = StandardScaler(copy=False)
    scaled = scaler.fit_transform(train.cpu().numpy().astype(np.float64))
    classifier = LogisticRegression.fit(scaled, labels, l2)
    predicted = classifier.predict(scaler.transform(test.cpu().numpy().astype(np.float64)))
    return float((predicted == test_labels.cpu().numpy()).mean())
