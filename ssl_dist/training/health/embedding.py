"""Statistics of a batch's embeddings, from which the health watch tells collapse and dimensions that are not in use.

Source: Wang and Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
Hypersphere", arXiv 2005.10242, section 4.1; Garrido et al., "RankMe", arXiv 2210.02885.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ssl_dist.evaluate.rank import alignment, exp_entropy, uniformity
from ssl_dist.training.health.rule import MAX_ROWS

_RANKED_ROWS = 256  # their Gram matrix takes milliseconds, however many dimensions there are


@torch.no_grad()
def embedding_statistics(embeddings: Tensor) -> dict[str, float]:
    """Return alignment, uniformity, separation, spread and rank of normalised embeddings.

        alignment   mean |z_a - z_b|^2 over images      0: views agree; 2: unrelated (``evaluate.rank.alignment``)
        uniformity  log mean exp(-2 |z_i - z_j|^2)      about -4: spread; 0: in one point (``evaluate.rank.uniformity``)
        separation  alignment / mean |z_i - z_j|^2      0: views agree; 1: they are as unlike as different images
        std         mean over dimensions of the standard deviation, times sqrt(D)     1: spread; 0: collapsed
        rank        RankMe of the first 256 images      1: in one point (``evaluate.rank.rankme``)
        rank_limit  the largest rank that so many embeddings of D dimensions can have

    Args:
        embeddings: ``[B, V, D]``, B >= 2, of which the first two views are used.
    """
    z = normalize(embeddings[:MAX_ROWS].float(), dim=2)
    z_a, z_b = z[:, 0], z[:, 1]
    between_images = float(torch.pdist(z_a).square().mean())
    aligned = alignment(z_a, z_b)
    ranked = z_a[:_RANKED_ROWS].double()
    gram = (ranked @ ranked.T).cpu()  # its eigenvalues are the squares of the singular values
    squares = torch.linalg.eigvalsh(gram).clamp(min=0) if gram.isfinite().all() else gram.new_full((1,), torch.nan)
    return {
        "alignment": aligned,
        "uniformity": uniformity(z_a),
        "separation": aligned / max(between_images, 1e-12),
        "std": float(z_a.std(0).mean() * z.shape[2] ** 0.5),
        "rank": exp_entropy(squares.sqrt()),
        "rank_limit": float(min(ranked.shape)),
    }
