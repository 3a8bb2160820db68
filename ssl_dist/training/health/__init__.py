"""The health of a run: rules that name in plain sentences what goes wrong during training, and what they have said."""

from ssl_dist.training.health.findings import HEALTH, Finding, read_health

__all__ = ["HEALTH", "Finding", "read_health"]
