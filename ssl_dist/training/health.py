"""Detection of collapse: statistics of the embedding, and a loss that is no better than a constant embedding's.

Source: Wang and Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
Hypersphere", arXiv 2005.10242, section 4.1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

# The tests of all methods check that random weights are on the healthy side of these.
COLLAPSED_STD = 0.01  # an embedding with a smaller std is collapsed; a healthy one is near 1
COLLAPSED_SEPARATION = 0.9  # a larger one is collapse; 512 rows of noise have 0.96 to 1.03 (measured)
FLAT_SHARE = 0.99  # a loss above this share of a collapsed network's is collapse; runs that learn have 0.96 at step 40
MAX_ROWS = 1024  # uniformity is a mean over pairs: more rows cost time and change little


@torch.no_grad()
def embedding_statistics(embeddings: Tensor) -> dict[str, float]:
    """Return alignment, uniformity, separation and spread of normalised embeddings.

        alignment   mean |z_a - z_b|^2 over images      0: views agree; 2: unrelated
        uniformity  log mean exp(-2 |z_i - z_j|^2)      about -4: spread over the sphere; 0: all in one point
        separation  alignment / mean |z_i - z_j|^2      0: views agree; 1: they are as unlike as different images
        std         mean over dimensions of the standard deviation, times sqrt(D)     1: spread; 0: collapsed

    Args:
        embeddings: ``[B, V, D]``, B >= 2, of which the first two views are used.
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
    """Tell whether embeddings have lost the images.

    Either all embeddings are in one point, or only noise spreads them, which BatchNorm amplifies: then two views of one
    image differ as much as two images.
    """
    return statistics["std"] < COLLAPSED_STD or statistics["separation"] > COLLAPSED_SEPARATION


def reason_of_collapse(statistics: dict[str, float], loss: float, collapsed_loss: float | None) -> str | None:
    """Say why training looks collapsed; None if it does not.

    Args:
        statistics: of the embedding; empty where the method has no pairs of views.
        collapsed_loss: the loss if all images had the same embedding; None before the end of warm-up, when weights are
            nearly random and the loss says nothing.
    """
    if statistics and collapsed(statistics):
        return "all embeddings are in one point, or two views of an image differ as much as two images"
    if collapsed_loss is not None and loss > FLAT_SHARE * collapsed_loss:
        return f"the loss is {loss:.3f}; if all images had the same embedding, it would be {collapsed_loss:.3f}"
    return None
