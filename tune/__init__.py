"""Searches over settings with Ray Tune: each trial is a pretraining; the only package that imports ray.tune."""
