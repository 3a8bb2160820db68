"""The settings of a run: one typed, frozen object for command line, YAML recipes and sweeps."""

from ssl_dist.config.resolved import DataFacts, Plan, ResolvedConfig
from ssl_dist.config.run import RunConfig

__all__ = ["DataFacts", "Plan", "ResolvedConfig", "RunConfig"]
