"""lightly's loop on CIFAR-10, for ``benchmarks.time_to_accuracy``: it writes its backbone's weights at some times.

    python -m benchmarks.lightly_training FOLDER STORE SEED EPOCHS

An epoch is as many images as the store has; they are drawn with replacement.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import torch
import typer

from benchmarks.cuda.loops import Lightly
from ssl_dist.config import RunConfig
from ssl_dist.data import resolve
from ssl_dist.machine import num_cores
from ssl_dist.store import ImageStore

RECIPE, POINTS = "simclr-cifar10", 6  # network, batch, rate and precision; checkpoints


def main(folder: Path, store: Path, seed: int, epochs: float, recipe: str = RECIPE) -> None:
    """Train for some epochs, the rate a cosine as in the recipe."""
    os.environ.setdefault("LIGHTLY_DID_VERSION_CHECK", "True")
    settings = {"data.store": str(store), "seed": seed, "epochs": epochs, "probe": None}
    config = RunConfig.load(recipe, settings)
    plan = resolve(config).config.plan()
    images = ImageStore(store)
    pixels = images.gather(np.arange(len(images)))
    torch.manual_seed(seed)
    loop = Lightly(config, pixels, torch.device("cpu"), num_cores())
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
    every, steps = plan.total_steps / POINTS, loop.steps()
    for step in range(plan.total_steps):
        loop.set_rate(
            config.optim.learning_rate(
                step, batch_size=config.batch.size, warmup_steps=plan.warmup_steps, total_steps=plan.total_steps
            )
        )
        next(steps)
        if int((step + 1) / every) > int(step / every):
            torch.save(loop.weights(), folder / f"{step + 1:06d}.pt")


if __name__ == "__main__":
    typer.run(main)
