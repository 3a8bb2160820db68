"""Copy many equally long runs of bytes out of several memory maps: the inner loop of reading images.

``gather_by_loop`` copies one run after the other. ``gather_by_address`` copies all runs in one NumPy operation, as fast
as NumPy indexes the rows of one array, and without Python's global lock. For that it declares one NumPy array that
spans all addresses from the first map to the end of the last, also those in between, and relies on this:

- A process has one flat address space, so the distance between two maps is a plain number.
- ``as_strided`` neither checks nor reads the memory that it spans. Memory between the maps is not ours and may not even
  exist; it is never touched, because each run is checked to be inside its own map before anything is read.
- Rows may overlap and begin at any byte, since both strides are 1.
- ``maps`` keeps the memory alive during the call.

``gather`` is the function to use: it is the fast one if both copy the same bytes in a trial when this module is
imported, and the plain loop otherwise.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

_MAX_ARRAY_BYTES = sys.maxsize  # NumPy's limit

Maps: TypeAlias = Mapping[int, np.ndarray]

log = logging.getLogger(__name__)


def gather_by_loop(maps: Maps, numbers: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """Copy runs of bytes one after the other.

    Args:
        maps: uint8 ``[n_i]`` each, contiguous, by number.
        numbers: int64 ``[N]``, for each run the number of its map.
        starts: int64 ``[N]``, for each run its first byte in that map.
        length: bytes of every run.

    Returns:
        uint8 ``[N, length]``.

    Raises:
        IndexError: a run begins before its map or ends beyond it.
    """
    copies = np.empty((len(starts), length), dtype=np.uint8)
    for row, number, start in zip(copies, numbers.tolist(), starts.tolist(), strict=True):
        if not 0 <= start <= len(maps[number]) - length:
            raise IndexError("bytes beyond a map")
        row[:] = maps[number][start : start + length]
    return copies


def gather_by_address(maps: Maps, numbers: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """Copy runs of bytes in one NumPy operation; see the module. Arguments, result and errors as ``gather_by_loop``."""
    if not len(starts):
        return np.empty((0, length), dtype=np.uint8)
    addresses = {number: each.__array_interface__["data"][0] for number, each in maps.items()}
    first = min(addresses, key=addresses.__getitem__)
    offsets, ends = np.zeros((2, max(maps) + 1), dtype=np.int64)  # of each map, counted from the first
    for number, address in addresses.items():
        offsets[number] = address - addresses[first]
        ends[number] = offsets[number] + len(maps[number])
    rows = starts + offsets[numbers]
    if starts.min() < 0 or (ends[numbers] - rows).min() < length:
        raise IndexError("bytes beyond a map")
    num_rows = int(ends.max()) - length + 1
    if num_rows > _MAX_ARRAY_BYTES // length:  # the maps are too far apart for one array
        return gather_by_loop(maps, numbers, starts, length)
    everything = np.lib.stride_tricks.as_strided(maps[first], (num_rows, length), (1, 1))
    copies: np.ndarray = everything[rows]
    return copies


def _addresses_work() -> bool:
    """Return whether both functions copy the same bytes out of two small maps."""
    maps = {number: np.arange(number, number + 100, dtype=np.uint8) for number in (1, 2)}
    runs = np.array([2, 1, 2, 1]), np.array([90, 0, 7, 90]), 10
    try:
        return np.array_equal(gather_by_address(maps, *runs), gather_by_loop(maps, *runs))
    except Exception:  # a NumPy that refuses such arrays
        return False


gather = gather_by_address
if not _addresses_work():
    log.warning("this version of NumPy cannot gather by address: images are read more slowly")
    gather = gather_by_loop
