"""Runs of bytes out of several maps at once."""

from __future__ import annotations

import numpy as np
import pytest

from ssl_dist.store import shard_reader
from ssl_dist.store.shard_reader import copied

RANDOM = np.random.default_rng(0)
MAPS = {number: RANDOM.integers(0, 256, size, dtype=np.uint8) for number, size in ((4, 100_000), (1, 57), (2, 9))}


def test_runs_begin_at_any_byte_of_any_map_and_may_end_with_it() -> None:
    numbers, starts = np.array([4, 1, 2, 2, 4, 1, 4]), np.array([3, 48, 0, 0, 99_991, 1, 50_001])
    expected = [
        MAPS[number][start : start + 9] for number, start in zip(numbers.tolist(), starts.tolist(), strict=True)
    ]
    found = copied(MAPS, numbers, starts, 9)
    assert np.array_equal(found, expected)
    found[:] = 0
    assert np.array_equal(copied(MAPS, numbers, starts, 9), expected), "a copy"


def test_maps_too_far_apart_for_one_array_are_read_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_reader, "_LARGEST", 0)
    test_runs_begin_at_any_byte_of_any_map_and_may_end_with_it()


@pytest.mark.parametrize(("number", "start"), [(1, 49), (2, 1), (4, 99_992), (1, -1), (4, -9)])
def test_a_run_that_is_not_within_its_map_is_refused(number: int, start: int) -> None:
    with pytest.raises(IndexError, match="beyond a map"):
        copied(MAPS, np.array([1, number]), np.array([0, start]), 9)


def test_no_runs_are_none() -> None:
    assert copied({}, np.array([], dtype=np.int64), np.array([], dtype=np.int64), 9).shape == (0, 9)
