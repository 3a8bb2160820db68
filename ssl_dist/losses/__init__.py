"""NT-Xent over the global batch, a pure function of embeddings; the loss of one method alone stands in ``methods``."""

from ssl_dist.losses.nt_xent import nt_xent

__all__ = ["nt_xent"]
