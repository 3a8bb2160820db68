"""The settings of a run: one typed, frozen object for command line, YAML recipes and sweeps."""

from ssl_dist.config.run import Plan, RunConfig

__all__ = ["Plan", "RunConfig"]
