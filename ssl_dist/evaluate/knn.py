"""k nearest neighbours of features, exact and in little memory, and the vote of their classes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ssl_dist.errors import ConfigError
from ssl_dist.evaluate.classifier_settings import Distance, expect_voters
from ssl_dist.evaluate.scores import Answers

_TILE_BYTES = 1 << 26  # of a tile of the bank, and of its similarities to a tile of queries
_QUERIES = 512  # of a tile
_SPARE = 16  # candidates beyond k: rounding may change the order of a product's nearest ones
_EPS = 2.0**-53
_LEAST_EXPONENT = -700.0  # of a weight: exp(-745) is 0


def nearest(bank: Tensor, queries: Tensor, k: int, distance: Distance = "cosine") -> tuple[Tensor, Tensor]:
    """Find the k nearest rows of the bank for each query, as float64 arithmetic finds them.

    A tile of products names candidates, whose similarities are then summed again in an order that does not depend on
    the tile. So equal rows of the bank have equal similarities, wherever they lie, and the lower row number is nearer.

    Memory beside the arguments does not grow with the bank: a few tiles of 64 MiB in float64, and some numbers for each
    of k + 16 candidates of a query.

    Args:
        bank: ``[n, D]``; queries: ``[q, D]``, on the same device.
        k: 1 .. n.
        distance: cosine: similarity s = x.y / (|x| |y|); euclidean: s = -|x - y|² / 2, which is cosine's minus 1 for
            rows of length 1.

    Returns:
        (similarities float64 ``[q, k]``, falling; rows int64 ``[q, k]``).
    """
    found = [_nearest_of(bank, part, k, distance) for part in queries.split(1 << 14)]
    return torch.cat([s for s, _ in found]), torch.cat([rows for _, rows in found])


def _nearest_of(bank: Tensor, queries: Tensor, k: int, distance: Distance) -> tuple[Tensor, Tensor]:
    width = min(k + _SPARE, len(bank))
    queries = _prepared(queries, distance)
    best = queries.new_full((len(queries), width), -torch.inf)
    rows = torch.full_like(best, -1, dtype=torch.int64)
    largest = queries.new_zeros(())
    for start in range(0, len(bank), tile := _tile_rows(bank)):
        part = _prepared(bank[start : start + tile], distance)
        norms = part.square().sum(1)  # [t]
        largest = torch.maximum(largest, norms.max())
        for first in range(0, len(queries), _QUERIES):
            here = slice(first, first + _QUERIES)
            products = queries[here] @ part.T  # [512, t]
            if distance == "euclidean":
                products -= norms / 2  # without -|query|² / 2, which is the same for all rows
            values, columns = products.topk(min(width, len(part)), dim=1)
            joined = torch.cat([best[here], values], 1)
            best[here], order = joined.topk(width, dim=1)
            rows[here] = torch.cat([rows[here], columns + start], 1).gather(1, order)
    # a sum of D products, each no larger than |x| |y|, and the sum of the same ones in another order
    error = 2 * _EPS * (bank.shape[1] + 4) * (queries.square().sum(1) + largest)
    similarity, rows = _resummed(bank, queries, rows, distance)
    if width < len(bank):
        unsure = (best[:, k - 1] - best[:, -1] <= 2 * error).nonzero()[:, 0]  # others may be as near
        for query in unsure.tolist():
            similarity[query], rows[query] = _scanned(bank, queries[query], width, distance)
    return similarity[:, :k], rows[:, :k]


def _tile_rows(bank: Tensor) -> int:
    return int(max(1, _TILE_BYTES // (8 * max(bank.shape[1], _QUERIES))))


def _prepared(rows: Tensor, distance: Distance) -> Tensor:
    return normalize(rows.double(), dim=1) if distance == "cosine" else rows.double()


def _similarity(rows: Tensor, query: Tensor, distance: Distance) -> Tensor:
    """Return similarities ``[..., m]`` of prepared ``rows [..., m, D]`` to ``query [..., 1, D]``, one order of sums."""
    return (rows * query).sum(-1) if distance == "cosine" else (rows - query).square_().sum(-1) / -2


def _resummed(bank: Tensor, queries: Tensor, rows: Tensor, distance: Distance) -> tuple[Tensor, Tensor]:
    """Sort candidates ``[q, m]`` by their similarity, which is summed again, and then by their row number."""
    rows = rows.sort(1).values
    similarity = torch.empty(rows.shape, dtype=torch.float64, device=rows.device)
    count = max(1, _TILE_BYTES // (8 * rows.shape[1] * bank.shape[1]))
    for part in torch.arange(len(queries), device=rows.device).split(count):
        candidates = _prepared(bank[rows[part]].flatten(0, 1), distance).unflatten(0, rows[part].shape)
        similarity[part] = _similarity(candidates, queries[part, None], distance)
    similarity, order = similarity.sort(dim=1, descending=True, stable=True)
    return similarity, rows.gather(1, order)


def _scanned(bank: Tensor, query: Tensor, width: int, distance: Distance) -> tuple[Tensor, Tensor]:
    """Return the nearest of all rows to one query; it is slow, and needed where many rows are about as near."""
    parts = bank.split(_tile_rows(bank))
    similarity = torch.cat([_similarity(_prepared(part, distance), query[None], distance) for part in parts])
    values, rows = similarity.sort(descending=True, stable=True)
    return values[:width], rows[:width]


def weights(similarity: Tensor, temperature: float | None) -> Tensor:
    """Return the weights of votes, above 0, of falling similarities ``[q, k]``; a factor for each query is left out."""
    if temperature is None:
        return torch.ones_like(similarity)
    # relative to the nearest one, or all weights could be 0
    return ((similarity - similarity[:, :1]) / temperature).clamp(min=_LEAST_EXPONENT).exp()


def knn_answers(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    *,
    k: int = 20,
    temperature: float | None = 0.1,
    distance: Distance = "cosine",
) -> Answers:
    """Let the k nearest bank features of each query vote.

    A vote weighs exp(s / temperature), where s is the similarity of ``nearest``; without a temperature all weigh 1. The
    class of the lower number wins a tie. Of equally near features, the k first of the bank vote.

    Args:
        bank: ``[n, D]``; bank_labels: int64 ``[n]`` in [0, K).
        queries: ``[q, D]``.
        k: voters, 1 .. n.
        temperature: greater than 0, or None.

    Raises:
        ConfigError: k or the temperature is out of range, or there is no query.

    Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", arXiv 1805.01978,
        section 3.4, which has 200 voters and a temperature of 0.07. Its code, zhirongw/lemniscate.pytorch, has 0.1 for
        CIFAR-10 (cifar.py), the default here.
    """
    expect_voters(bank_labels, k, temperature)
    if not len(queries):
        raise ConfigError("kNN: there is no query image")
    similarity, rows = nearest(bank, queries, k, distance)
    weight = weights(similarity, temperature)
    votes = weight.new_zeros(len(queries), int(bank_labels.max()) + 1).scatter_add_(1, bank_labels[rows], weight)
    return Answers.of(votes.cpu().numpy())


def knn_accuracy(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor, *, k: int = 20, temperature: float = 0.1
) -> float:
    """Return the share of queries that ``knn_answers`` is right about, in [0, 1]; query_labels: int64 ``[q]``."""
    answers = knn_answers(bank, bank_labels, queries, k=k, temperature=temperature)
    return float(np.mean(answers.right(query_labels.cpu().numpy())))
