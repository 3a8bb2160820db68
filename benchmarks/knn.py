"""Benchmark of nearest neighbours: time and peak memory of ours beside scikit-learn's brute force, on made features.

    python -m benchmarks.knn                              # 512,000 x 128, 10,000 queries
    python -m benchmarks.knn --dim 2048 --queries 500

Each has a process of its own, whose peak memory counts the libraries and the features. Scikit-learn searches float32
features, and ours finds the neighbours of float64 arithmetic. The table is for docs/results.md.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks import page
from benchmarks.processes import in_fresh_process

_CLASSES = 800


def main(
    images: Annotated[int, typer.Option(help="Features of the bank.")] = 512_000,
    dim: Annotated[int, typer.Option(help="Numbers of a feature.")] = 128,
    queries: Annotated[int, typer.Option(help="Features that ask.")] = 10_000,
    k: Annotated[int, typer.Option(help="Neighbours.")] = 20,
) -> None:
    """Measure, and print a Markdown table."""
    rows = []
    for name in ("ours", "scikit-learn"):
        call = in_fresh_process(measure, name, images, dim, queries, k)
        seconds, cpu = call.result
        rows.append([name, f"{seconds:,.0f}", f"{cpu:,.0f}", f"{call.peak.rss / 2**30:.2f}"])
    print(f"{queries:,} queries, {images:,} x {dim} features, k = {k}, cosine similarity")
    print(page.table(["", "s", "CPU s", "peak RSS, GiB"], rows))
    print(page.machine())


def measure(name: str, images: int, dim: int, queries: int, k: int) -> tuple[float, float]:
    """Return the seconds and the CPU seconds of a search among features that lie around the centres of classes."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((_CLASSES, dim), dtype=np.float32)
    bank, asked = (_around(centres, number, random) for number in (images, queries))
    began, cpu = time.perf_counter(), time.process_time()
    found = _ours(bank, asked, k) if name == "ours" else _scikit_learn(bank, asked, k)
    assert found.shape == (queries, k)
    return time.perf_counter() - began, time.process_time() - cpu


def _around(centres: np.ndarray, number: int, random: np.random.Generator) -> np.ndarray:
    features = random.standard_normal((number, centres.shape[1]), dtype=np.float32)
    features += centres[random.integers(0, len(centres), number)]
    return features


def _ours(bank: np.ndarray, asked: np.ndarray, k: int) -> Any:
    import torch

    from ssl_dist.evaluate.knn import nearest

    return nearest(torch.from_numpy(bank), torch.from_numpy(asked), k)[1]


def _scikit_learn(bank: np.ndarray, asked: np.ndarray, k: int) -> Any:
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=k, algorithm="brute", metric="cosine").fit(bank).kneighbors(asked)[1]


if __name__ == "__main__":
    typer.run(main)
