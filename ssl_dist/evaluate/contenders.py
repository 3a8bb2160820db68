"""Encoders that stand in one table: a run's, random weights, raw pixels, and the pixels' principal components."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_dist.checkpoint import Checkpoint
from ssl_dist.evaluate.features import (
    ChunkCallback,
    Levels,
    expect_finite,
    extract,
    fastest_device,
    load_method,
    raw_pixels,
)
from ssl_dist.evaluate.labelled import Labelled
from ssl_dist.evaluate.protocols import BASELINES, ProgressCallback
from ssl_dist.methods import Method
from ssl_dist.progress import Tally

_COMPONENTS = 128  # of the pixels

Pair = tuple[Labelled, Labelled]
"""Training images, test images."""
PairFeatures = dict[str, tuple[Tensor, Tensor]]
"""By level: features of the training images ``[n, dim]`` and of the test images ``[q, dim]``, float32 on the CPU."""


class Contender(NamedTuple):
    """An encoder that comes in ``draws`` versions; ``features(draw)`` computes the features of one."""

    name: str
    draws: int
    features: Callable[[int], PairFeatures]


def contenders(
    found: Checkpoint,
    pair: Pair,
    levels: Sequence[str],
    baselines: Sequence[str],
    seeds: Sequence[int],
    progress: ProgressCallback | None,
) -> Sequence[Contender]:
    """Return the run's encoder and the baselines, of which random weights are drawn once for each of the ``seeds``."""
    draws = {"random": len(seeds), "pixels": 1, "pca": 1}
    encodings = 1 + sum(draws[name] for name in set(baselines))
    count = Tally(progress, encodings * sum(len(some.ids) for some in pair))

    def random(draw: int) -> Method:
        return found.config.model_copy(update={"seed": found.config.seed + seeds[draw]}).initial_method()

    def embedded(method: Method) -> PairFeatures:
        return embed_pair(method, found, pair, levels, count)

    trained = Contender(f"trained, {found.step} steps", 1, lambda draw: embedded(load_method(found)))
    beside = {
        "random": Contender("random weights", len(seeds), lambda draw: embedded(random(draw))),
        "pixels": Contender("raw pixels", 1, lambda draw: {"pixels": _pixels(pair, count)}),
        "pca": Contender("PCA of pixels", 1, lambda draw: {"PCA": _principal_components(pair, count)}),
    }
    return [trained, *(beside[name] for name in BASELINES if name in baselines)]


def embed_pair(
    method: Method, found: Checkpoint, pair: Pair, levels: Sequence[str], count: ChunkCallback | None = None
) -> PairFeatures:
    """Compute the features of a method's network at several levels."""
    network, device = Levels(method, levels), fastest_device()
    network.to(device)
    both = [extract(network, some.store, some.ids, device, found.config, count).cpu() for some in pair]
    known, asked = (expect_finite(features, found).split(network.dims, dim=1) for features in both)
    return {level: (known[number], asked[number]) for number, level in enumerate(levels)}


def _pixels(pair: Pair, count: ChunkCallback) -> tuple[Tensor, Tensor]:
    known, asked = (raw_pixels(some.store, some.ids, count) for some in pair)
    return known, asked


def _principal_components(pair: Pair, count: ChunkCallback) -> tuple[Tensor, Tensor]:
    """Return the first principal components of the training images' pixels, for both stores' images."""
    from sklearn.decomposition import PCA

    known, asked = (pixels.numpy() for pixels in _pixels(pair, count))
    number = min(_COMPONENTS, *known.shape)
    components = PCA(number, svd_solver="randomized", random_state=0).fit(known)
    return torch.from_numpy(components.transform(known)), torch.from_numpy(components.transform(asked))
