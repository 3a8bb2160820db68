"""Labels that a model gives: clusters of features, the classes it is surest of."""

from __future__ import annotations

import tracemalloc

import numpy as np
import torch

from ssl_dist.evaluate.pseudo_labels import cluster_labels, most_confident


def test_the_most_confident_rows_come_first() -> None:
    probabilities = torch.tensor([[0.5, 0.5], [0.1, 0.9], [0.8, 0.2], [0.1, 0.9]])
    rows, classes = most_confident(probabilities, 3)
    assert rows.tolist() == [1, 3, 2]
    assert classes.tolist() == [1, 1, 0]


def test_clusters_group_similar_features() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(4, 6, generator=generator)
    truth = torch.arange(200) % 4
    features = centres[truth] + torch.randn(200, 6, generator=generator)
    labels = cluster_labels(features.clone(), 4, seed=3)
    assert len({(int(a), int(b)) for a, b in zip(truth, labels, strict=True)}) == 4
    assert np.array_equal(labels, cluster_labels(features, 4, seed=3))


def test_clusters_take_no_second_copy_of_the_features() -> None:
    features = torch.randn(200_000, 64, generator=torch.Generator().manual_seed(0)) * 3 + 5
    features[:, 0] = 0.7
    tracemalloc.start()
    cluster_labels(features, 8, seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < features.nbytes / 4, "a batch's and a few numbers an image"
    assert (features[:, 0] == 0).all(), "of a dimension that says nothing, nothing is left"
    assert torch.allclose(features[:, 1:].std(0), torch.ones(63), rtol=1e-4), "standardised where they lie"
