"""Checks of a cluster before money is spent on it: its nodes, the links between workers, exactness, and a dry run."""

from cluster.doctor.checks import Report, check
from cluster.doctor.tables import show_report

__all__ = ["Report", "check", "show_report"]
