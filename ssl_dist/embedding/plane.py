"""Places of all images in the plane: t-SNE of some of them, and the others beside their nearest of these."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ssl_dist.embedding.parts import Parts, embeddings, read_part, write_part
from ssl_dist.evaluate.maps import Settings, layout, principal_components
from ssl_dist.evaluate.over_training import drawn

MAP_IMAGES = 5000  # that t-SNE lays out: its time grows faster than their number
_PERPLEXITY, _SEED = 30.0, 0
_NEAREST = 3


class Plane:
    """The map of an embedding.

    t-SNE lays out at most MAP_IMAGES images, which are drawn at random. Each other image stands in the middle of the
    three of them whose features are nearest to its own: it has no influence on the map.

    Attributes:
        about: how it is made, in words.
    """

    def __init__(self, parts: Parts, counts: np.ndarray) -> None:
        """Lay out the images, unless that was done before.

        Args:
            counts: number of rows of each part.

        Raises:
            RunError: all images have the same features, or a part is damaged.
        """
        import torch

        total = int(counts.sum())
        self._rows = drawn(MAP_IMAGES, total, _SEED)
        perplexity = max(1.0, min(_PERPLEXITY, (len(self._rows) - 1) / 3))
        self.about = (
            f"t-SNE of {len(self._rows):,} of {total:,} images, from at most 50 principal components of their features;"
            f" perplexity {perplexity:g}, seed {_SEED}"
        )
        if total > len(self._rows):
            self.about += f"; each other image in the middle of its {_NEAREST} nearest of these"
        features = _features_at(parts, self._rows, counts)
        self._places = _laid_out(parts.folder / "map.parquet", features, perplexity)
        self._bank = torch.from_numpy(features)

    def places(self, first: int, features: np.ndarray) -> np.ndarray:
        """Return the places of consecutive images, float32 ``[n, 2]``.

        Args:
            first: number of the first of them.
            features: float32 ``[n, D]``.
        """
        import torch

        from ssl_dist.evaluate.knn import nearest

        start, stop = np.searchsorted(self._rows, (first, first + len(features)))
        fitted = self._rows[start:stop] - first
        found = np.empty((len(features), 2), dtype=np.float32)
        if len(others := np.setdiff1d(np.arange(len(features)), fitted)):
            _, near = nearest(self._bank, torch.from_numpy(features[others]), min(_NEAREST, len(self._bank)))
            found[others] = self._places[near.numpy()].mean(1, dtype=np.float64)
        found[fitted] = self._places[start:stop]
        return found


def _features_at(parts: Parts, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
    found, start = list[np.ndarray](), 0
    for part, count in enumerate(counts.tolist()):
        low, high = np.searchsorted(rows, (start, start + count))
        if low < high:
            found.append(embeddings(parts.table(part, ["embedding"]))[rows[low:high] - start])
        start += count
    return np.concatenate(found)


def _laid_out(file: Path, features: np.ndarray, perplexity: float) -> np.ndarray:
    """Return the places of images with these features, float32 ``[n, 2]``, from a file, if it is there."""
    import pyarrow as pa

    if (kept := read_part(file, len(features))) is None:
        components = principal_components(features)
        settings = Settings("tsne", perplexity, "class", 1, _SEED)
        places = layout(components, settings, components[:, :2])
        kept = pa.table({"x": places[:, 0], "y": places[:, 1]})
        write_part(file, kept, len(features), [])
    return np.stack([kept["x"].to_numpy(), kept["y"].to_numpy()], axis=1)
