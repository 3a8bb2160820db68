"""Which images a training step has, and in which order."""

from ssl_dist.data.permutation import sample_ids

__all__ = ["sample_ids"]
