"""Benchmark of LiDAR's views: the probe's numbers of images and views beside the paper's, on encoders of one run.

python -m benchmarks.lidar runs/cifar10         # minutes, by the size of the network
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated
from unittest import mock

import typer

from ssl_dist.collectives import World
from ssl_dist.data import open_store
from ssl_dist.evaluate import encoder_of, probe
from ssl_dist.settings import ProbeConfig

WAYS = {"ours": (4096, 10), "theirs": (1000, 50)}  # images, views of each


def main(run: Annotated[Path, typer.Argument(help="A run directory.")]) -> None:
    """Print a JSON line for the run's random start and one for its newest checkpoint."""
    trained, config, step = encoder_of(run)
    store, encoders = open_store(config.data), {0: config.initial_method().backbone, step: trained}
    for at, encoder in encoders.items():
        found = {}
        for way, (images, views) in WAYS.items():
            settings = config.model_copy(update={"probe": ProbeConfig(kind="lidar", bank=images)})
            with mock.patch.object(probe, "LIDAR_VIEWS", views):
                found[way] = probe.Probe(settings, store).score(encoder, World.current())
        print(json.dumps({"step": at, **found}), flush=True)


if __name__ == "__main__":
    typer.run(main)
