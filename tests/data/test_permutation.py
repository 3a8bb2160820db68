"""The order of samples is a permutation, a pure function of the position, and takes O(1) memory."""

import tracemalloc

import numpy as np
import pytest
import torch

from ssl_dist import hashing
from ssl_dist.data import permutation
from ssl_dist.data.windowed_order import WindowedOrder
from ssl_dist.errors import ConfigError


@pytest.mark.parametrize("num_samples", [1, 2, 3, 7, 63, 64, 65, 1000, 4096, 4097])
def test_an_epoch_is_a_permutation(num_samples: int) -> None:
    ids = permutation.sample_ids(3, 5, 0, num_samples, num_samples)
    assert ids.dtype == np.int64
    assert sorted(ids.tolist()) == list(range(num_samples))


def test_any_part_of_an_epoch_equals_that_part_of_the_whole() -> None:
    whole = permutation.sample_ids(1, 2, 0, 1000, 1000)
    assert np.array_equal(permutation.sample_ids(1, 2, 617, 803, 1000), whole[617:803])


def test_epochs_and_seeds_give_other_permutations() -> None:
    orders = [permutation.sample_ids(seed, epoch, 0, 500, 500) for seed in (0, 1) for epoch in (0, 1)]
    agreements = [np.mean(a == b) for i, a in enumerate(orders) for b in orders[:i]]
    assert max(agreements) < 0.03  # 1/500 by chance


def test_every_sample_is_as_likely_at_every_position() -> None:
    num_samples, epochs = 10, 1500
    table = np.zeros((num_samples, num_samples))
    for epoch in range(epochs):
        table[np.arange(num_samples), permutation.sample_ids(0, epoch, 0, num_samples, num_samples)] += 1
    chi_squared = ((table - epochs / num_samples) ** 2 / (epochs / num_samples)).sum()
    assert 81 - 5 * 12.7 < chi_squared < 81 + 5 * 12.7  # 81 degrees of freedom, standard deviation 12.7


def test_neighbours_in_the_store_are_spread_over_the_epoch() -> None:
    places = np.argsort(permutation.sample_ids(0, 0, 0, 100_000, 100_000))
    gaps = np.abs(np.diff(places)) / 100_000
    assert abs(gaps.mean() - 1 / 3) < 0.005  # of two uniform places


def test_a_position_of_a_huge_epoch_takes_no_memory() -> None:
    tracemalloc.start()
    ids = permutation.sample_ids(0, 0, 10**12 - 100, 10**12, 10**12)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(ids.tolist())) == 100
    assert ids.max() < 10**12
    assert peak < 100_000


def test_the_stream_carries_an_epochs_tail_into_the_next_batch() -> None:
    ids, epochs = zip(*(permutation.stream(0, step * 8, step * 8 + 8, 51) for step in range(51)), strict=True)
    for epoch in range(8):
        seen = np.concatenate(ids)[np.concatenate(epochs) == epoch]
        assert sorted(seen.tolist()) == list(range(51))


def test_positions_outside_the_epoch_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"positions 5\.\.11 lie outside an epoch of 10 samples"):
        permutation.sample_ids(0, 0, 5, 11, 10)


def test_the_hash_is_the_same_in_numpy_and_torch() -> None:
    words = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 1000, dtype=np.int64)
    assert np.array_equal(hashing.mix64(words), hashing.mix64(torch.from_numpy(words)).numpy())
    assert len(np.unique(hashing.mix64(np.arange(100_000)))) == 100_000


UNEQUAL = [500, 0, 37, 512, 1, 512, 300, 0, 512, 129]  # rows of shards; 2503 in all


@pytest.mark.parametrize("window", [1, 100, 512, 700, 2502, 2503, 10**9])
@pytest.mark.parametrize("rows", [[1], [3, 4], [512] * 5, UNEQUAL])
def test_an_epoch_in_windows_has_each_sample_once(rows: list[int], window: int) -> None:
    windows = WindowedOrder(3, rows, window)
    epochs = [windows.sample_ids(epoch, 0, sum(rows)) for epoch in range(3)]
    for ids in epochs:
        assert ids.dtype == np.int64
        assert sorted(ids.tolist()) == list(range(sum(rows)))
    if sum(rows) > 100:
        assert not np.array_equal(epochs[0], epochs[1])
        assert not np.array_equal(WindowedOrder(4, rows, window).sample_ids(0, 0, sum(rows)), epochs[0])


def test_any_part_of_the_stream_of_windows_equals_that_part_of_the_whole() -> None:
    windows = WindowedOrder(1, UNEQUAL, 700)
    ids, epochs = windows.stream(0, 3 * 2503)
    assert np.array_equal(epochs, np.repeat([0, 1, 2], 2503))
    for start, stop in ((0, 0), (0, 1), (617, 803), (2502, 2504), (2000, 7000)):
        part = WindowedOrder(1, UNEQUAL, 700).stream(start, stop)  # one that has seen nothing before
        assert np.array_equal(part[0], ids[start:stop])
        assert np.array_equal(part[1], epochs[start:stop])


def test_a_window_needs_its_shards_alone_and_they_are_announced() -> None:
    windows = WindowedOrder(1, UNEQUAL, 700)
    shard_of = np.repeat(np.arange(10), UNEQUAL)
    ids, _ = windows.stream(0, 5 * 2503)
    announced: list[int] = []
    for start in range(0, 5 * 2503 - 64, 64):
        now, soon = windows.needed_shards(start, start + 64)
        assert set(shard_of[ids[start : start + 64]]) <= set(now)
        assert sum(UNEQUAL[shard] for shard in now) < 2 * (windows.width + 512)
        if announced and set(now) - set(announced):
            pytest.fail(f"{now} are needed, and only {announced} were announced")
        announced = [*now, *soon]
    assert windows.needed_shards(0, 0) == ([], windows.needed_shards(0, 1).now)


def test_within_a_window_neighbours_are_spread_and_windows_are_even() -> None:
    rows = [512] * 64
    windows = WindowedOrder(0, rows, 5000)
    ids = windows.sample_ids(7, 0, 512 * 64)
    places = np.argsort(ids)
    bounds = [0]
    while bounds[-1] < 512 * 64:
        found = windows.needed_shards(7 * 512 * 64 + bounds[-1], 7 * 512 * 64 + bounds[-1] + 1).now
        bounds.append(bounds[-1] + 512 * len(found))
    assert np.diff(bounds).min() >= 9 * 512  # 7 windows of 9 or 10 shards
    assert np.diff(bounds).max() <= 10 * 512
    same = np.diff(np.searchsorted(bounds, places, side="right")) == 0
    gaps = np.abs(np.diff(places))[same] / np.diff(bounds).mean()
    assert abs(gaps.mean() - 1 / 3) < 0.01  # of two uniform places; standard error 0.0013


def test_a_position_of_a_billion_in_windows_takes_memory_for_the_shards_alone() -> None:
    rows = np.full(10**9 // 8192, 8192)
    tracemalloc.start()
    windows = WindowedOrder(0, rows, 2**17)
    ids, _ = windows.stream(10**15, 10**15 + 4096)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(ids.tolist())) == 4096
    assert peak < 400 * len(rows)  # bytes: 8 each for a few arrays of as many, of which the permutation has a dozen


def test_positions_outside_an_epoch_of_windows_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"positions 5\.\.11 lie outside an epoch of 10 samples"):
        WindowedOrder(0, [4, 6], 5).sample_ids(0, 5, 11)
