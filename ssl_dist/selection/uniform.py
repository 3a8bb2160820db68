"""``random``: any images, the measure of all other strategies."""

from __future__ import annotations

from ssl_dist.selection.pool import Pool, Selection, draw


def random(pool: Pool, count: int, seed: int) -> Selection:
    """Draw images, each as likely as any other."""
    rows = pool.unlabelled
    return Selection(rows[draw(count, len(rows), seed)])
