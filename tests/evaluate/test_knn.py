"""kNN equals a loop in float64, whatever the tiles, and names neighbours and classes by its rules where they tie."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from ssl_dist.errors import ConfigError
from ssl_dist.evaluate import knn, knn_accuracy
from ssl_dist.evaluate.classifier_settings import Distance
from ssl_dist.evaluate.knn import knn_answers, nearest

DISTANCES: tuple[Distance, ...] = ("cosine", "euclidean")


def clusters(n: int, seed: int, num_classes: int = 7) -> tuple[Tensor, Tensor]:
    """Return float32 features of classes of different sizes and spreads, whose lengths differ."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, num_classes, (n,), generator=generator) * torch.randint(0, 2, (n,), generator=generator)
    centres = torch.randn(num_classes, 8, generator=torch.Generator().manual_seed(9))
    noise = torch.randn(n, 8, generator=generator) * (1 + labels[:, None] / 4)
    return (centres[labels] + noise) * torch.rand(n, 1, generator=generator).add(0.5), labels


def similarity(query: Tensor, row: Tensor, distance: Distance) -> float:
    """Return the similarity in exact sums of float64 products."""
    x, y = query.double().tolist(), row.double().tolist()
    if distance == "euclidean":
        return -math.fsum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / 2
    lengths = [math.sqrt(math.fsum(a * a for a in z)) for z in (x, y)]
    return math.fsum(a * b for a, b in zip(x, y, strict=True)) / (lengths[0] * lengths[1])


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (5, None), (20, 0.1), (60, 1.0), (60, None)])
def test_answers_equal_the_vote_written_out(k: int, temperature: float | None, distance: Distance) -> None:
    (bank, labels), (queries, _) = clusters(60, 0), clusters(150, 1)
    found = knn_answers(bank, labels, queries, k=k, temperature=temperature, distance=distance)
    for query, classes, confidence in zip(queries, found.classes, found.confidence, strict=True):
        near = sorted((-similarity(query, row, distance), number) for number, row in enumerate(bank))[:k]
        votes = dict[int, float]()
        for negative, number in near:
            weight = 1.0 if temperature is None else math.exp((near[0][0] - negative) / temperature)
            votes[int(labels[number])] = votes.get(int(labels[number]), 0.0) + weight
        ranked = sorted(votes, key=lambda label: (-votes[label], label))[:5]
        assert classes.tolist() == ranked + [-1] * (5 - len(ranked))
        assert confidence == pytest.approx(votes[ranked[0]] / sum(votes.values()), rel=1e-9)


def test_a_class_whose_votes_weigh_next_to_nothing_is_named() -> None:
    bank, labels = torch.tensor([[0.0], [5.0], [9.0]]), torch.tensor([2, 0, 1])
    found = knn_answers(bank, labels, torch.zeros(1, 1), k=2, temperature=1e-6, distance="euclidean")
    assert found.classes.tolist() == [[2, 0, -1, -1, -1]]
    assert found.confidence.tolist() == [1.0]


def test_equal_votes_are_scikit_learns() -> None:
    (bank, labels), (queries, truth) = clusters(300, 0), clusters(200, 1)
    found = knn_answers(bank, labels, queries, k=9, temperature=None, distance="euclidean")
    reference = KNeighborsClassifier(9).fit(bank.double().numpy(), labels.numpy())
    assert found.classes[:, 0].tolist() == reference.predict(queries.double().numpy()).tolist()
    assert 0.3 < found.right(truth.numpy()).mean() < 0.9


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(("tile_bytes", "queries_of_a_tile"), [(1, 1), (8 * 8 * 7, 3), (8 * 512 * 100, 512)])
def test_neighbours_do_not_depend_on_the_tiles(
    monkeypatch: pytest.MonkeyPatch, distance: Distance, tile_bytes: int, queries_of_a_tile: int
) -> None:
    (bank, _), (queries, _) = clusters(130, 0), clusters(11, 1)
    expected = nearest(bank, queries, 4, distance)
    monkeypatch.setattr(knn, "_TILE_BYTES", tile_bytes)
    monkeypatch.setattr(knn, "_QUERIES", queries_of_a_tile)
    for one, other in zip(nearest(bank, queries, 4, distance), expected, strict=True):
        assert torch.equal(one, other)


def copies(number: int) -> Tensor:
    """Return a bank in which each of three rows stands ``number`` times, mixed with others."""
    rows, others = clusters(3, 3)[0], clusters(200, 4)[0] * 3
    mixed = torch.cat([rows.repeat(number, 1), others])
    return mixed[torch.randperm(len(mixed), generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("number", [2, 9, 40])
def test_of_equal_rows_the_first_are_nearest(monkeypatch: pytest.MonkeyPatch, number: int, distance: Distance) -> None:
    """Forty copies are more than the spare candidates: which of them a tile's products rank first is chance."""
    bank, queries = copies(number), clusters(3, 3)[0]
    monkeypatch.setattr(knn, "_TILE_BYTES", 8 * 512 * 37)
    similarity, rows = nearest(bank, queries, number, distance)
    for query, mine, values in zip(queries, rows, similarity, strict=True):
        assert mine.tolist() == (bank == query).all(1).nonzero()[:, 0].tolist()
        assert len(set(values.tolist())) == 1
    fewer = nearest(bank, queries, number // 2, distance)[1]
    assert torch.equal(fewer, rows[:, : number // 2])


def test_features_that_are_all_equal_have_the_first_rows_as_neighbours() -> None:
    rows = nearest(torch.ones(90, 5), torch.ones(3, 5), 4)[1]
    assert rows.tolist() == [[0, 1, 2, 3]] * 3


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_votes_by_distance_do_not_vanish(scale: float) -> None:
    """exp(-d² / 2t) is 0 for all neighbours that are far away; relative to the nearest it is not."""
    (bank, labels), (queries, _) = clusters(60, 0), clusters(20, 1)
    found = knn_answers(bank * scale, labels, queries * scale, k=5, distance="euclidean")
    assert (found.classes[:, 0] >= 0).all()
    assert (found.confidence > 0.19).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: knn_accuracy(x, y, x, y, k=6), r"k 6: the bank has 5 labelled images, k is one of 1\.\.5"),
        (lambda x, y: knn_accuracy(x, y, x[:0], y[:0], k=1), "no query image"),
        (lambda x, y: knn_accuracy(x, y, x, y, k=1, temperature=math.nan), "temperature nan"),
    ],
)
def test_what_cannot_vote_is_refused(call: Callable[[Tensor, Tensor], float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call(*clusters(5, 0))


def test_accuracy_counts_the_first_class_only() -> None:
    bank, labels = torch.eye(4), torch.tensor([0, 1, 1, 2])
    truth = torch.tensor([0, 1, 2, 7])  # 7: a class that the bank lacks
    assert knn_accuracy(bank, labels, bank, truth, k=1) == np.mean([True, True, False, False])
