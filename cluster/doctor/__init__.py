"""Checks of a cluster before money is spent on it."""
