"""Detection of collapse: statistics of the embedding, and a loss that is no better than a constant embedding's.

Source: Wang and Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
Hypersphere", arXiv 2005.10242, section 4.1.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import fmean
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ssl_dist.evaluate.rank import alignment, uniformity

COLLAPSED_STD = 0.01  # an embedding with a smaller std is collapsed; a healthy one is near 1
COLLAPSED_SEPARATION = 0.9  # a larger one is collapse; 512 rows of noise have 0.96 to 1.03 (measured)
FLAT_SHARE = 0.99  # a loss above this share of a collapsed network's is collapse; runs that learn have 0.96 at step 40
PATIENCE = 200  # steps; runs on digits that learn are below 0.6 of separation after 30, without a warm-up
_NOISE = 0.6  # standard deviation of a separation, times the root of its rows (measured on digits, 8 to 64 rows)
_LOGS = 5  # logged steps whose mean is judged, since a single step of a small batch is noise
MAX_ROWS = 1024  # uniformity is a mean over pairs: more rows cost time and change little


@torch.no_grad()
def embedding_statistics(embeddings: Tensor) -> dict[str, float]:
    """Return alignment, uniformity, separation and spread of normalised embeddings.

        alignment   mean |z_a - z_b|^2 over images      0: views agree; 2: unrelated (``evaluate.rank.alignment``)
        uniformity  log mean exp(-2 |z_i - z_j|^2)      about -4: spread; 0: in one point (``evaluate.rank.uniformity``)
        separation  alignment / mean |z_i - z_j|^2      0: views agree; 1: they are as unlike as different images
        std         mean over dimensions of the standard deviation, times sqrt(D)     1: spread; 0: collapsed

    Args:
        embeddings: ``[B, V, D]``, B >= 2, of which the first two views are used.
    """
    z = normalize(embeddings[:MAX_ROWS].float(), dim=2)
    z_a, z_b = z[:, 0], z[:, 1]
    between_images = float(torch.pdist(z_a).square().mean())
    aligned = alignment(z_a, z_b)
    return {
        "alignment": aligned,
        "uniformity": uniformity(z_a),
        "separation": aligned / max(between_images, 1e-12),
        "std": float(z_a.std(0).mean() * z.shape[2] ** 0.5),
    }


class CollapseWatch:
    """Tells from a run's numbers whether training looks collapsed, judged against the run's own step 0.

    Two views of an image may differ as much as two images before anything is learnt, in small or plain pictures, so
    that says nothing by itself. From the end of warm-up, embeddings are collapsed that are in one point, or clearly
    worse than at step 0. After ``PATIENCE`` further steps, so are those that are no better than at step 0, or a loss
    that is still that of a constant embedding.

    Args:
        warmup_steps: of the run. A warm-up of more than ``PATIENCE`` steps hides what is clearly worse no longer.
        collapsed_loss: the loss if all images had the same embedding; None: the loss does not show collapse.

    Attributes:
        start: statistics of the embedding at step 0; empty where they are not known.
    """

    start: Mapping[str, float] = MappingProxyType({})

    def __init__(self, warmup_steps: int, collapsed_loss: float | None) -> None:
        self._warm, self._patient = min(warmup_steps, PATIENCE), warmup_steps + PATIENCE
        self._collapsed_loss = collapsed_loss
        self._separations, self._losses = (deque[float](maxlen=_LOGS) for _ in range(2))

    def reason(self, step: int, statistics: Mapping[str, float], rows: int, loss: float) -> str | None:
        """Say why training looks collapsed; None if it does not.

        Args:
            statistics: of the embedding, of ``rows`` images; empty where the method has no pairs of views.
            loss: of this step.
        """
        if step <= self._warm:
            return None
        self._losses.append(loss)
        mean_loss, limit = fmean(self._losses), self._collapsed_loss
        if statistics:
            self._separations.append(statistics["separation"])
            if statistics["std"] < min(COLLAPSED_STD, self.start.get("std", math.inf) / 2):
                return "all embeddings are in one point"
            if self._unlike(step, min(rows, MAX_ROWS)):
                return "two views of an image differ as much as two images, and training makes it no better"
        if limit is not None and step >= self._patient and mean_loss > FLAT_SHARE * limit:
            return f"the loss is {mean_loss:.3f}; if all images had the same embedding, it would be {limit:.3f}"
        return None

    def _unlike(self, step: int, rows: int) -> bool:
        """Return whether views of an image are as unlike as different images, because of the training."""
        now, start = fmean(self._separations), self.start.get("separation")
        if now <= COLLAPSED_SEPARATION:
            return False
        if step >= self._patient:
            return start is None or now > start - _NOISE / math.sqrt(rows * len(self._separations))
        return start is not None and now > start + 3 * _NOISE / math.sqrt(rows)
