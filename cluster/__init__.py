"""Runs the science on Ray: one machine or a cluster. The only package that imports ray.train."""
