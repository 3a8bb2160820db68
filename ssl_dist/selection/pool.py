"""The images that a strategy chooses from, random draws of them, and distances between them.

n images, D features.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ssl_dist.data.permutation import sample_ids

ROOM_BYTES = 1 << 30
"""What a strategy may hold beside copies of the features: 512,000 x 128 features, two copies of them, the libraries and
this stay below 2 GiB."""
TILE = 1 << 22
"""Distances that are computed at once."""


class Pool(NamedTuple):
    """Images of a store, labelled or not.

    Attributes:
        features: float32 ``[n, D]``, as the encoder computed them.
        labels: int32 ``[n]``, -1 for an image without a label.
        num_classes: classes that the store names, 0 if it names none.
    """

    features: np.ndarray
    labels: np.ndarray
    num_classes: int = 0

    @property
    def labelled(self) -> np.ndarray:
        """Rows of the images with a label, int64."""
        return np.flatnonzero(self.labels >= 0)

    @property
    def unlabelled(self) -> np.ndarray:
        """Rows of the images without a label, int64."""
        return np.flatnonzero(self.labels < 0)


class Selection(NamedTuple):
    """The rows that a strategy asks labels for.

    Attributes:
        rows: int64 ``[count]``, the most wanted first.
        note: what a person should know of how they were chosen; mostly nothing.
    """

    rows: np.ndarray
    note: str = ""


def draw(count: int, total: int, seed: int, stream: int = 0) -> np.ndarray:
    """Draw ``count`` of the numbers below ``total`` without replacement, int64; a seed has a draw for each stream."""
    return sample_ids(seed, stream, 0, count, total)


def on_sphere(features: np.ndarray) -> np.ndarray:
    """Return a copy, float32 ``[n, D]``, whose rows have length 1; rows of zeros stay."""
    lengths = np.sqrt(np.einsum("nd,nd->n", features, features))[:, None]
    scaled: np.ndarray = features / np.maximum(lengths, np.finfo(np.float32).tiny)
    return scaled


def squares_of(x: np.ndarray) -> np.ndarray:
    """Return the squared length of each row, ``[n]``."""
    squares: np.ndarray = np.einsum("nd,nd->n", x, x)
    return squares


def squared_distances(a: np.ndarray, b: np.ndarray, squares_a: np.ndarray, squares_b: np.ndarray) -> np.ndarray:
    """Return the squared Euclidean distances ``[A, B]`` of the rows of ``[A, D]`` and ``[B, D]``, none below 0.

    Fast where A is not much less than 64, and no larger than B.
    """
    found: np.ndarray = (-2 * a) @ b.T
    found += squares_b
    found += squares_a[:, None]
    np.maximum(found, 0, out=found)
    return found
