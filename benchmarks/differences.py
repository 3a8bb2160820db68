"""Benchmark of differences from the authors' code: each method both ways, three seeds each, on one machine.

    python -m benchmarks.differences clamp --source cifar10-train.tar       # about 20 minutes on two quiet cores

docs/differences.md explains them and has what was measured. Both ways have the same settings, seeds, images and order;
the score is the online probe's: kNN of 4,096 images of the source against 8,192 others.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, cast
from unittest import mock

import numpy as np
import typer

from benchmarks import originals
from ssl_dist import augment
from ssl_dist.augment import operations
from ssl_dist.backbones import ConvolutionalBackbone
from ssl_dist.collectives import World
from ssl_dist.config import RunConfig
from ssl_dist.data import resolve
from ssl_dist.data.batches import Batches
from ssl_dist.data.resolve import Data
from ssl_dist.evaluate import extract
from ssl_dist.evaluate.probe import Probe
from ssl_dist.evaluate.pseudo_labels import cluster_labels
from ssl_dist.methods import Method
from ssl_dist.store import build
from ssl_dist.training.engine import Engine

SMALL = {
    "backbone.width": 32,
    "batch.size": 256,
    "batch.micro": 128,
    "engine.zero_stage": 0,
    "probe": {"bank": 8192, "queries": 4096, "k": 20},
}


class Difference(NamedTuple):
    """A method as it is here, and as its authors have it.

    Attributes:
        recipe: name of the recipe.
        settings: overrides of both ways.
        theirs: further overrides of the authors' way.
        change: changes a new method into the authors'.
        patch: (object, name of its attribute, what stands there in the authors' way).
        clusters: whether batches are spread over clusters of an autoencoder's latents, which the authors pool.
    """

    recipe: str
    settings: Mapping[str, Any] = MappingProxyType({})
    theirs: Mapping[str, Any] = MappingProxyType({})
    change: Callable[[Method], object] = lambda method: None
    patch: tuple[Any, str, Any] | None = None
    clusters: bool = False


_STRONG = {"augment.jitter_strength": 1.0}
_QUEUE = {"method.queue": 2048, "method.queue_from_epoch": 1}

DIFFERENCES = {
    "clamp": Difference("simclr-cifar10", patch=(augment, "crops", originals.clamped_crops)),
    "clamp-strong": Difference("simclr-cifar10", _STRONG, patch=(augment, "crops", originals.clamped_crops)),
    "bicubic": Difference("simclr-cifar10", patch=(operations, "resize_taps", originals.bicubic_taps)),
    "simclr-batch-norm": Difference("simclr-cifar10", change=originals.end_with_batch_norm),
    "swav-bias": Difference("swav-cifar10", change=originals.end_with_bias),
    "self-classifier-bias": Difference("self-classifier-cifar10", change=originals.end_with_bias),
    "self-classifier-head": Difference("self-classifier-cifar10", change=originals.use_self_classifier_head),
    "moco-symmetric": Difference("moco-cifar10", {"method.symmetric": True}, change=originals.use_symmetric_moco),
    "swav-queue": Difference("swav-cifar10", _QUEUE, change=originals.fill_queue_late),
    "g-simclr-latents": Difference("gsimclr-cifar10", clusters=True),
    "denoising-noise": Difference("denoising-cifar10", {"backbone.width": None}, {"method.noise": 0.01}),
}


def main(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(DIFFERENCES)}.")],
    source: Annotated[Path, typer.Option(help="Labelled images of 32 px, in any form that a store is built from.")],
    epochs: Annotated[float, typer.Option(help="Length of each run.")] = 3.0,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Train both ways with each seed; print a JSON line for each run, and one of their differences."""
    if name not in DIFFERENCES:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(DIFFERENCES)}")
    scores: dict[str, list[float]] = {"ours": [], "theirs": []}
    with tempfile.TemporaryDirectory() as folder:
        build(source, Path(folder) / "store", size_px=32)
        for seed in range(seeds):
            for way, found in scores.items():
                began = time.perf_counter()
                found.append(train(DIFFERENCES[name], Path(folder) / "store", seed, epochs, way == "theirs"))
                seconds = round(time.perf_counter() - began)
                print(
                    json.dumps({"way": way, "seed": seed, "knn": round(found[-1], 4), "seconds": seconds}), flush=True
                )
    gains = [theirs - ours for ours, theirs in zip(*scores.values(), strict=True)]
    means = {way: round(statistics.mean(found), 4) for way, found in scores.items()}
    spread = round(statistics.stdev(gains), 4) if seeds > 1 else None
    print(json.dumps({"difference": name, **means, "gain": round(statistics.mean(gains), 4), "gain_stdev": spread}))


def train(difference: Difference, store: Path, seed: int, epochs: float, theirs: bool) -> float:
    """Train one way on all images of a store, in this process; return the online probe's accuracy."""
    settings = {"data.store": str(store), "seed": seed, "epochs": epochs, **SMALL, **difference.settings}
    if difference.clusters:
        settings |= {"data.stratified": True, "data.label_file": _cluster(settings, pooled=theirs)}
    data = resolve(RunConfig.load(difference.recipe, {**settings, **(difference.theirs if theirs else {})}))
    method = data.config.initial_method()
    with _patched(difference.patch if theirs else None):
        if theirs:
            difference.change(method)
        _fit(method, data)
    score = Probe(data.config, data.store).score(method.backbone, World.current())
    assert score is not None, "the source has labels"
    return score


def _fit(method: Method, data: Data) -> None:
    """Train a method for the whole length of its run."""
    config, plan, world = data.config, data.config.plan(), World.current()
    engine = Engine(method, config, world)
    length: dict[str, Any] = {"warmup_steps": plan.warmup_steps, "total_steps": plan.total_steps}
    for batch in Batches(data.sample_plan, world, 0, plan.total_steps):
        engine.step(batch, config.optim.learning_rate(batch.step, batch_size=config.batch.size, **length))


def _cluster(settings: Mapping[str, Any], pooled: bool) -> str:
    """Train G-SimCLR's autoencoder, cluster its latents, all or the means of channels; return the file of clusters."""
    data = resolve(RunConfig.load("denoising-cifar10", {**settings, "backbone.width": None}))
    method = data.config.initial_method()
    _fit(method, data)
    backbone = cast(ConvolutionalBackbone, method.backbone)
    ids = np.arange(len(data.store))
    latents = extract(backbone, data.store, ids, World.current().device, data.config)
    if pooled:
        latents = latents.unflatten(1, (backbone.channels, -1)).mean(2)
    file = Path(settings["data.store"]).with_name("clusters.npy")
    np.save(file, cluster_labels(latents, data.config.batch.size, data.config.seed))
    return str(file)


@contextlib.contextmanager
def _patched(patch: tuple[Any, str, Any] | None) -> Iterator[None]:
    if patch is None:
        yield
        return
    with mock.patch.object(*patch):
        yield


if __name__ == "__main__":
    typer.run(main)
