"""Runs as pages and pictures."""
