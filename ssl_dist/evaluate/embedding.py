"""Is the embedding healthy? Three numbers that show collapse long before the loss does.

Source: Wang and Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
Hypersphere", arXiv 2005.10242, section 4.1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

COLLAPSED_STD = 0.01  # of 1; the battery of methods checks that random weights are above it
MAX_ROWS = 1024  # uniformity is a mean over pairs: this many rows are enough, and keep it cheap


@torch.no_grad()
def embedding_statistics(embeddings: Tensor) -> dict[str, float]:
    """Alignment, uniformity and spread of normalised embeddings.

        alignment   mean |z_a - z_b|^2 over images      0: views agree; 2: unrelated
        uniformity  log mean exp(-2 |z_i - z_j|^2)      about -4: spread over the sphere; 0: all in one point
        std         mean over dimensions of the standard deviation, times sqrt(D)     1: spread; 0: collapsed

    Args:
        embeddings: ``[B, V, D]``, B >= 2, the first two views are used.
    """
    z = normalize(embeddings[:MAX_ROWS].float(), dim=2)
    z_a, z_b = z[:, 0], z[:, 1]
    distances = torch.pdist(z_a).square()
    return {
        "alignment": float((z_a - z_b).square().sum(1).mean()),
        "uniformity": float((-2 * distances).exp().mean().log()),
        "std": float(z_a.std(0).mean() * z.shape[2] ** 0.5),
    }


def collapsed(statistics: dict[str, float]) -> bool:
    """Are all embeddings in one place, whatever the images?"""
    return statistics["std"] < COLLAPSED_STD
