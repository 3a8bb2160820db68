"""Benchmark of requests for labels at the size of study 000: time and memory of each strategy on made features.

    python -m benchmarks.label_request                  # 512,000 x 128, 12,800 requested: an hour of one core

Features are of 800 classes of unequal size and spread, 32 of each labelled. Each strategy has a process of its own,
whose peak memory counts the libraries and the features. The table is for docs/results.md.
"""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks import page
from benchmarks.processes import in_fresh_process
from ssl_dist.selection.pool import Pool
from ssl_dist.selection.strategies import STRATEGIES, select

_CHUNK = 65_536


def main(
    images: Annotated[int, typer.Option(help="Images of the store.")] = 512_000,
    dim: Annotated[int, typer.Option(help="Features of an image.")] = 128,
    classes: Annotated[int, typer.Option(help="Classes.")] = 800,
    labelled: Annotated[int, typer.Option(help="Labelled images of each class.")] = 32,
    count: Annotated[int, typer.Option(help="Images requested.")] = 12_800,
    only: Annotated[str, typer.Option(help="Names of strategies, with commas between; default: all.")] = "",
) -> None:
    """Measure, print a JSON line for each strategy, and a Markdown table of all."""
    rows = []
    for name in only.split(",") if only else STRATEGIES:
        call = in_fresh_process(measure, name, images, dim, classes, labelled, count)
        found = {"strategy": name, **call.result, "peak_rss_bytes": call.peak.rss}
        print(json.dumps(found), flush=True)
        peak = f"{call.peak.rss / 2**30:.2f}"
        rows.append([name, f"{found['seconds']:,.0f}", f"{found['cpu_seconds']:,.0f}", peak, found["note"]])
    print(page.table(["strategy", "s", "CPU s", "peak RSS, GiB", "chosen from"], rows))
    print(page.machine())


def measure(name: str, images: int, dim: int, classes: int, labelled: int, count: int) -> dict[str, Any]:
    """Return the seconds of a request on made features, and what it said."""
    pool = made(images, dim, classes, labelled)
    began, cpu = time.perf_counter(), time.process_time()
    found = select(name, pool, count)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    assert len(set(found.rows.tolist())) == count
    return {"images": images, "seconds": seconds, "cpu_seconds": cpu_seconds, "note": found.note}


def made(images: int, dim: int, classes: int, labelled: int) -> Pool:
    """Make features around the centres of classes, of unequal size and spread, and labels of some images of each."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((classes, dim), dtype=np.float32)
    spreads = random.uniform(0.3, 1.2, classes).astype(np.float32)
    shares = random.uniform(0.5, 1.5, classes)
    truth = random.choice(classes, images, p=shares / shares.sum()).astype(np.int32)
    x = random.standard_normal((images, dim), dtype=np.float32)
    for start in range(0, images, _CHUNK):
        part = slice(start, start + _CHUNK)
        x[part] *= spreads[truth[part], None]
        x[part] += centres[truth[part]]
    labels = np.full(images, -1, np.int32)
    for one in range(classes):
        labels[np.flatnonzero(truth == one)[:labelled]] = one
    return Pool(x, labels, classes)


if __name__ == "__main__":
    typer.run(main)
