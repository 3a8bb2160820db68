"""A stratified order of images: each block of positions has one image of each group."""

from __future__ import annotations

import numpy as np

from ssl_dist.data.permutation import sample_ids, stream
from ssl_dist.hashing import derive_seed

_GROUPS = 2  # names the seed of groups


class Groups:
    """Positions of an endless stream in which each block of K positions has one sample of each of K groups.

    A group's samples come in a permutation, and when it is through in another: rows of small groups come more often.

        position p: block b = p div K; group g = permute(b, p mod K); sample = permute(g, b div n_g, b mod n_g) of g
    """

    def __init__(self, seed: int, labels: np.ndarray) -> None:
        """
        Args:
            labels: whole numbers ``[n]``, equal in a group; rows of less than 0 are in none.
        """
        self._seed = seed
        self._rows = [np.flatnonzero(labels == label) for label in np.unique(labels[labels >= 0])]

    def stream(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """As the function ``stream``; an epoch is a group's own."""
        positions = np.arange(start, stop, dtype=np.int64)
        num_groups = len(self._rows)
        blocks = positions // num_groups
        groups = np.empty_like(positions)
        for block in np.unique(blocks):
            mine = blocks == block
            orders = sample_ids(derive_seed(self._seed, _GROUPS), int(block), 0, num_groups, num_groups)
            groups[mine] = orders[positions[mine] % num_groups]
        ids, epochs = np.empty_like(positions), np.empty_like(positions)
        for group in np.unique(groups):
            mine = np.flatnonzero(groups == group)  # one in each block, but for the first and the last
            seed, rows = derive_seed(self._seed, _GROUPS, int(group)), self._rows[group]
            places, epochs[mine] = stream(seed, int(blocks[mine[0]]), int(blocks[mine[-1]]) + 1, len(rows))
            ids[mine] = rows[places]
        return ids, epochs
