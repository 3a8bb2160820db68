"""Is the embedding healthy? Four numbers that show collapse long before the loss does.

Source: Wang and Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
Hypersphere", arXiv 2005.10242, section 4.1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

# The battery of methods checks that random weights are on the right side of both.
COLLAPSED_STD = 0.01  # of 1
COLLAPSED_SEPARATION = 0.9  # of 1; 512 rows of noise have 0.96 to 1.03 (measured)
MAX_ROWS = 1024  # uniformity is a mean over pairs: this many rows are enough, and keep it cheap


@torch.no_grad()
def embedding_statistics(embeddings: Tensor) -> dict[str, float]:
    """Alignment, uniformity, separation and spread of normalised embeddings.

        alignment   mean |z_a - z_b|^2 over images      0: views agree; 2: unrelated
        uniformity  log mean exp(-2 |z_i - z_j|^2)      about -4: spread over the sphere; 0: all in one point
        separation  alignment / mean |z_i - z_j|^2      0: views agree; 1: they are as unlike as different images
        std         mean over dimensions of the standard deviation, times sqrt(D)     1: spread; 0: collapsed

    Args:
        embeddings: ``[B, V, D]``, B >= 2, the first two views are used.
    """
    z = normalize(embeddings[:MAX_ROWS].float(), dim=2)
    z_a, z_b = z[:, 0], z[:, 1]
    distances = torch.pdist(z_a).square()
    alignment = (z_a - z_b).square().sum(1).mean()
    return {
        "alignment": float(alignment),
        "uniformity": float((-2 * distances).exp().mean().log()),
        "separation": float(alignment / distances.mean().clamp(min=1e-12)),
        "std": float(z_a.std(0).mean() * z.shape[2] ** 0.5),
    }


def collapsed(statistics: dict[str, float]) -> bool:
    """Do embeddings say nothing of the images? All are in one place, or it is but noise that spreads them (BatchNorm
    blows it up), by which two views of an image differ as much as two images."""
    return statistics["std"] < COLLAPSED_STD or statistics["separation"] > COLLAPSED_SEPARATION
