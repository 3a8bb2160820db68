"""Losses of the global batch: pure functions of embeddings."""

from ssl_dist.losses.nt_xent import nt_xent

__all__ = ["nt_xent"]
