"""The order of samples: a permutation, a pure function, in O(1) memory."""

import tracemalloc

import numpy as np
import pytest
import torch

from ssl_dist import order
from ssl_dist.errors import ConfigError


@pytest.mark.parametrize("num_samples", [1, 2, 3, 7, 63, 64, 65, 1000, 4096, 4097])
def test_an_epoch_is_a_permutation(num_samples: int) -> None:
    ids = order.sample_ids(3, 5, 0, num_samples, num_samples)
    assert ids.dtype == np.int64
    assert sorted(ids.tolist()) == list(range(num_samples))


def test_any_part_of_an_epoch_equals_that_part_of_the_whole() -> None:
    whole = order.sample_ids(1, 2, 0, 1000, 1000)
    assert np.array_equal(order.sample_ids(1, 2, 617, 803, 1000), whole[617:803])


def test_epochs_and_seeds_give_other_permutations() -> None:
    orders = [order.sample_ids(seed, epoch, 0, 500, 500) for seed in (0, 1) for epoch in (0, 1)]
    agreements = [np.mean(a == b) for i, a in enumerate(orders) for b in orders[:i]]
    assert max(agreements) < 0.03  # 1/500 by chance


def test_every_sample_is_as_likely_at_every_position() -> None:
    num_samples, epochs = 10, 4000
    table = np.zeros((num_samples, num_samples))
    for epoch in range(epochs):
        table[np.arange(num_samples), order.sample_ids(0, epoch, 0, num_samples, num_samples)] += 1
    chi_squared = ((table - epochs / num_samples) ** 2 / (epochs / num_samples)).sum()
    assert 81 - 5 * 12.7 < chi_squared < 81 + 5 * 12.7  # 81 degrees of freedom, standard deviation 12.7


def test_neighbours_in_the_store_are_spread_over_the_epoch() -> None:
    places = np.argsort(order.sample_ids(0, 0, 0, 100_000, 100_000))
    gaps = np.abs(np.diff(places)) / 100_000
    assert abs(gaps.mean() - 1 / 3) < 0.005  # of two uniform places


def test_a_position_of_a_huge_epoch_takes_no_memory() -> None:
    tracemalloc.start()
    ids = order.sample_ids(0, 0, 10**12 - 100, 10**12, 10**12)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(ids.tolist())) == 100
    assert ids.max() < 10**12
    assert peak < 100_000


def test_the_stream_carries_an_epochs_tail_into_the_next_batch() -> None:
    ids, epochs = zip(*(order.stream(0, step * 8, step * 8 + 8, 51) for step in range(51)), strict=True)
    for epoch in range(8):
        seen = np.concatenate(ids)[np.concatenate(epochs) == epoch]
        assert sorted(seen.tolist()) == list(range(51))


def test_positions_outside_the_epoch_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"positions 5\.\.11 lie outside an epoch of 10 samples"):
        order.sample_ids(0, 0, 5, 11, 10)


def test_the_hash_is_the_same_in_numpy_and_torch() -> None:
    words = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 1000, dtype=np.int64)
    assert np.array_equal(order.mix64(words), order.mix64(torch.from_numpy(words)).numpy())
    assert len(np.unique(order.mix64(np.arange(100_000)))) == 100_000
