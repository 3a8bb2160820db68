"""Benchmark of training's peak memory by global batch, at one micro-batch: cached gradients keep it nearly constant.

    python -m benchmarks.memory             # about three minutes; writes into docs/performance.md

The figure is the peak resident size (Linux) of a fresh process that trains the recipe simclr-cifar10 for three epochs
on the same random images: three steps with the largest batch, more with smaller ones.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image

from benchmarks import page
from benchmarks.nt_xent import peak_resident
from ssl_dist.collectives import World
from ssl_dist.config import RunConfig
from ssl_dist.data import resolve
from ssl_dist.data.batches import Batches
from ssl_dist.store import build
from ssl_dist.training.engine import Engine

MICRO = 256


def main(
    sizes: Annotated[list[int], typer.Option(help="Global batches.")] = [256, 8192],  # noqa: B006
    docs: Annotated[Path, typer.Option(help="Folder of performance.md.")] = page.DOCS,
) -> None:
    """Measure each global batch, print JSON lines, and write the section of performance.md."""
    with tempfile.TemporaryDirectory() as folder:
        store = random_store(Path(folder), max(sizes))
        peaks = {}
        for size in sizes:
            peaks[size] = peak_of_training(store, size)
            print(json.dumps({"batch": size, "micro": MICRO, "peak_bytes": peaks[size]}), flush=True)
    rows = [[f"{size:,}", f"{peak / 1e6:,.0f}", f"{peak / peaks[sizes[0]]:.3f}"] for size, peak in peaks.items()]
    text = f"""
`python -m benchmarks.memory`: three epochs of `simclr-cifar10` (ResNet-8, width 64, bf16, ZeRO 1) over {max(sizes):,}
images of 32 px, micro-batches of {MICRO}, `batch.keep_graphs` 0; a fresh process for each global batch. Two things grow
with the global batch: the pixels of two batches, one in use and one fetched ahead (25 MB each at 8,192), and the
embeddings. {page.machine()}

{page.table(["global batch", "peak resident MB", f"in units of {sizes[0]:,}'s"], rows)}
"""
    page.write_section("Memory by global batch", text, docs)


def random_store(folder: Path, images: int) -> Path:
    """Build a store of random 32 px images in ``folder``; return its path."""
    pixels = np.random.default_rng(0).integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
    (folder / "images").mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / "images" / f"{number:06d}.bmp")
    build(folder / "images", folder / "store", workers=1)
    return folder / "store"


def peak_of_training(store: Path, size: int) -> int:
    """Train in a fresh process with global batch ``size``; return its peak resident bytes."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_train, store, size, torch.get_num_threads()).result()


def _train(store: Path, size: int, threads: int) -> int:
    torch.set_num_threads(threads)
    overrides = {"data.store": str(store), "batch.size": size, "batch.micro": MICRO, "epochs": 3}
    overrides["batch.keep_graphs"] = 0  # auto would keep as many as half of the machine's free memory holds
    config, _, sample_plan = resolve(RunConfig.load("simclr-cifar10", overrides))
    world = World.current()
    engine = Engine(config.initial_method(), config, world)
    for batch in Batches(sample_plan, world, 0, config.plan().total_steps):
        engine.step(batch, learning_rate=0.001)
    return peak_resident()


if __name__ == "__main__":
    typer.run(main)
