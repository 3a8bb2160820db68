"""Weighted k-nearest-neighbour accuracy of frozen features.

Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", arXiv 1805.01978,
section 3.4: cosine similarity s, votes weighted by exp(s / 0.1).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ssl_dist.errors import ConfigError

TEMPERATURE = 0.1
_CHUNK = 512


def knn_accuracy(bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor, *, k: int = 20) -> float:
    """Return the share of queries whose label wins the vote of their k nearest bank features.

    Args:
        bank: ``[n, D]``; bank_labels: int64 ``[n]`` in [0, K).
        queries: ``[q, D]``; query_labels: int64 ``[q]``.
        k: voters, 1 .. n.

    Returns:
        Accuracy in [0, 1]; a tie goes to the class of the lower number.

    Raises:
        ConfigError: k is out of range, or there is no query.
    """
    if not 1 <= k <= len(bank):
        raise ConfigError(f"k {k}: the bank has {len(bank)} images, k is one of 1..{len(bank)}")
    if not len(queries):
        raise ConfigError("kNN: there is no query image")
    bank = normalize(bank.float(), dim=1)
    num_classes = int(bank_labels.max()) + 1
    right = 0
    for part, truth in zip(queries.split(_CHUNK), query_labels.split(_CHUNK), strict=True):
        similarity, nearest = (normalize(part.float(), dim=1) @ bank.T).topk(k, dim=1)  # [q, k]
        weight = ((similarity - 1) / TEMPERATURE).exp()
        votes = torch.zeros(len(part), num_classes, device=part.device).scatter_add_(1, bank_labels[nearest], weight)
        right += int((votes.argmax(1) == truth).sum())
    return right / len(queries)
