"""Pretraining on Ray, on one machine or a cluster; the only package that imports ray.train."""
