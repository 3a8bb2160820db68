"""Losses over the global batch that several methods may use, as pure functions of embeddings."""

from ssl_dist.losses.nt_xent import nt_xent

__all__ = ["nt_xent"]
