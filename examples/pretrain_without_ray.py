"""Pretrain an encoder with the library alone: one process, no Ray, no command line.

    python examples/pretrain_without_ray.py IMAGES OUT

IMAGES is a folder of class folders; their names are only used to measure. OUT gets a store and a run directory.
"""

import sys
from pathlib import Path

from ssl_dist.collectives import World
from ssl_dist.config import RunConfig
from ssl_dist.data import resolve
from ssl_dist.evaluate import Knn, compare
from ssl_dist.store import build
from ssl_dist.training.loop import StopRequests, pretrain


def main(images: Path, out: Path) -> None:
    store, run = out / "store", out / "run"
    build(images, store, size_px=32, workers=1)
    small = {"batch": {"size": 16, "micro": 16}, "backbone.width": 16, "epochs": 8}
    settings = {"data.store": str(store), "engine.precision": "fp32", **small}
    config = RunConfig.load("simclr-cifar10", settings)
    run.mkdir()
    last = pretrain(resolve(config).config, run, World.current(), StopRequests())
    print(f"{last['step']} steps, loss {last['train/loss']:.3f}, checkpoints in {run / 'checkpoints'}")
    result = compare(run, store, store, Knn(k=2))
    print(f"2-nearest-neighbour accuracy on the images themselves: {result.trained:.1%}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
