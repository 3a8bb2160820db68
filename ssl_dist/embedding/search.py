"""Exact search for the nearest images in features that are read a block at a time."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ssl_dist.evaluate.knn import nearest


def nearest_in_blocks(
    blocks: Iterable[Tensor], queries: Tensor, count: int, own: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Find the nearest rows of all blocks for each query by cosine similarity, as ``nearest`` finds them in one.

    The result does not depend on how the rows are cut into blocks; of equally near rows, the lower number is nearer.
    One block is in memory at a time.

    Args:
        blocks: ``[n, D]`` each; rows are numbered on from block to block.
        queries: ``[q, D]``.
        count: rows that are wanted, at least 1.
        own: int64 ``[q]``, a row for each query that does not count, which is the query itself.

    Returns:
        (similarities float64 ``[q, k]``, falling; rows int64 ``[q, k]``), where k is ``count``, or all rows if these
        are fewer.
    """
    best = torch.empty(len(queries), 0, dtype=torch.float64, device=queries.device)
    rows = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    first = 0
    for block in blocks:
        if not len(block):
            continue
        similarity, found = nearest(block, queries, min(count + (own is not None), len(block)))
        found += first
        first += len(block)
        if own is not None:
            similarity[found == own[:, None]] = -torch.inf
        best, order = torch.cat([best, similarity], 1).sort(dim=1, descending=True, stable=True)
        rows = torch.cat([rows, found], 1).gather(1, order)
        kept = min(count, first)
        best, rows = best[:, :kept], rows[:, :kept]
    kept = min(count, first - (own is not None))
    return best[:, :kept], rows[:, :kept]
