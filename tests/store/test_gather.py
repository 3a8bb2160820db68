"""Gathering runs of bytes from several maps: the fast function copies the same bytes as the plain loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from ssl_dist.store import gather
from ssl_dist.store.gather import gather_by_address, gather_by_loop

Gather = Callable[[Mapping[int, np.ndarray], np.ndarray, np.ndarray, int], np.ndarray]

RANDOM = np.random.default_rng(0)
MAPS = {number: RANDOM.integers(0, 256, size, dtype=np.uint8) for number, size in ((4, 100_000), (1, 57), (2, 9))}

both = pytest.mark.parametrize("function", [gather_by_loop, gather_by_address])


def test_the_fast_function_is_used() -> None:
    assert gather._addresses_work()
    assert gather.gather is gather_by_address


def random_runs(random: np.random.Generator) -> tuple[dict[int, np.ndarray], np.ndarray, np.ndarray, int]:
    """Return the arguments of a gather: maps of random sizes, and runs of one random length anywhere in them."""
    length = int(random.integers(1, 50))
    numbers = random.choice(20, size=random.integers(1, 6), replace=False).tolist()
    maps = {number: random.integers(0, 256, length + random.integers(0, 3000), dtype=np.uint8) for number in numbers}
    chosen = random.choice(numbers, size=random.integers(0, 100))
    starts = np.array([random.integers(0, len(maps[number]) - length + 1) for number in chosen], dtype=np.int64)
    return maps, chosen, starts, length


def test_both_copy_the_same_bytes_of_random_maps() -> None:
    random = np.random.default_rng(1)
    for case in range(300):
        maps, numbers, starts, length = random_runs(random)
        expected = [maps[number][start : start + length] for number, start in zip(numbers, starts, strict=True)]
        for function in (gather_by_loop, gather_by_address):
            copies = function(maps, numbers, starts, length)
            assert copies.shape == (len(starts), length), case
            assert np.array_equal(copies, np.array(expected, dtype=np.uint8).reshape(copies.shape)), case


@both
def test_the_result_is_a_copy(function: Gather) -> None:
    numbers, starts = np.array([4, 1, 2, 2, 4, 1, 4]), np.array([3, 48, 0, 0, 99_991, 1, 50_001])
    copies = function(MAPS, numbers, starts, 9)
    before = copies.copy()
    copies[:] = 0
    assert np.array_equal(function(MAPS, numbers, starts, 9), before)


def test_maps_too_far_apart_for_one_array_are_read_by_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "_MAX_ARRAY_BYTES", 0)
    test_both_copy_the_same_bytes_of_random_maps()


@both
@pytest.mark.parametrize(("number", "start"), [(1, 49), (2, 1), (4, 99_992), (1, -1), (4, -9), (4, 2**63 - 1)])
def test_a_run_that_is_not_within_its_map_is_refused(function: Gather, number: int, start: int) -> None:
    with pytest.raises(IndexError, match="beyond a map"):
        function(MAPS, np.array([1, number]), np.array([0, start]), 9)


def test_random_runs_that_leave_their_map_are_refused_by_both() -> None:
    random = np.random.default_rng(2)
    for _ in range(300):
        maps, numbers, starts, length = random_runs(random)
        if not len(starts):
            continue
        run = random.integers(len(starts))
        end = len(maps[int(numbers[run])]) - length
        starts[run] = random.choice([-1 - random.integers(5000), end + 1 + random.integers(5000)])
        for function in (gather_by_loop, gather_by_address):
            with pytest.raises(IndexError, match="beyond a map"):
                function(maps, numbers, starts, length)


@both
def test_no_runs_give_no_rows(function: Gather) -> None:
    assert function({}, np.array([], dtype=np.int64), np.array([], dtype=np.int64), 9).shape == (0, 9)
