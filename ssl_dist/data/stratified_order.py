"""A stratified order of samples: each block of positions has one sample of each label."""

from __future__ import annotations

import numpy as np

from ssl_dist.data.permutation import sample_ids, stream
from ssl_dist.hashing import derive_seed

_STRATA = 2  # name of the seeds that are derived from the run's


class StratifiedOrder:
    """An endless stream of samples in which each block of K positions has one sample of each of K labels.

    Each label's samples are permuted again and again, so a sample of a rare label comes more often. Label k has n_k
    samples, and ``permute(key, epoch, position)`` stands for ``permutation.sample_ids`` with a seed of that key:

        position p: b = p div K; label k = permute("labels", b, p mod K); sample = permute(k, b div n_k, b mod n_k)
    """

    def __init__(self, seed: int, labels: np.ndarray) -> None:
        """
        Args:
            seed: any whole number.
            labels: whole numbers ``[n]``; samples whose label is below 0 are left out.
        """
        self._seed = seed
        self._rows = [np.flatnonzero(labels == label) for label in np.unique(labels[labels >= 0])]

    def stream(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and epochs at positions start .. stop-1, as ``permutation.stream`` does; each label has epochs of
        its own."""
        positions = np.arange(start, stop, dtype=np.int64)
        num_strata = len(self._rows)
        blocks = positions // num_strata
        strata = np.empty_like(positions)
        for block in np.unique(blocks):
            here = blocks == block
            order = sample_ids(derive_seed(self._seed, _STRATA), int(block), 0, num_strata, num_strata)
            strata[here] = order[positions[here] % num_strata]
        ids, epochs = np.empty_like(positions), np.empty_like(positions)
        for stratum in np.unique(strata):
            here = np.flatnonzero(strata == stratum)  # one position of each block, except in the first and the last
            seed, rows = derive_seed(self._seed, _STRATA, int(stratum)), self._rows[stratum]
            picked, epochs[here] = stream(seed, int(blocks[here[0]]), int(blocks[here[-1]]) + 1, len(rows))
            ids[here] = rows[picked]
        return ids, epochs
