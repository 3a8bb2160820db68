"""The benchmark of label requests measures what a request of that size is."""

from __future__ import annotations

import numpy as np

from benchmarks.label_request import made, measure


def test_made_features_have_classes_of_unequal_size_and_as_many_labels_of_each() -> None:
    pool = made(3000, 5, 7, 4)
    assert pool.features.shape == (3000, 5)
    assert np.bincount(pool.labels[pool.labels >= 0]).tolist() == [4] * 7
    assert (made(3000, 5, 7, 4).features == pool.features).all()


def test_a_measurement_says_how_long_a_request_took_and_what_it_chose_from() -> None:
    found = measure("coreset", 600, 5, 7, 4, 30)
    assert found["images"] == 600
    assert found["seconds"] > 0
    assert found["note"] == ""
