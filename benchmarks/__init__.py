"""Benchmarks of this project beside other libraries; each is a module to run: ``python -m benchmarks.NAME``."""
