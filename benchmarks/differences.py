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
from typing import Annotated, Any, NamedTuple
from unittest import mock

import typer

from benchmarks import originals
from ssl_dist import augment
from ssl_dist.augment import operations
from ssl_dist.collectives import World
from ssl_dist.config import RunConfig
from ssl_dist.data import resolve
from ssl_dist.data.batches import Batches
from ssl_dist.evaluate.probe import Probe
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
    """

    recipe: str
    settings: Mapping[str, Any] = MappingProxyType({})
    theirs: Mapping[str, Any] = MappingProxyType({})
    change: Callable[[Method], object] = lambda method: None
    patch: tuple[Any, str, Any] | None = None


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
    config, images, sample_plan = resolve(
        RunConfig.load(difference.recipe, {**settings, **(difference.theirs if theirs else {})})
    )
    method, world, plan = config.initial_method(), World.current(), config.plan()
    with _patched(difference.patch if theirs else None):
        if theirs:
            difference.change(method)
        engine = Engine(method, config, world)
        for batch in Batches(sample_plan, world, 0, plan.total_steps):
            rate = config.optim.learning_rate(
                batch.step,
                batch_size=config.batch.size,
                warmup_steps=plan.warmup_steps,
                total_steps=plan.total_steps,
            )
            engine.step(batch, rate)
    score = Probe(config, images).score(engine.method.backbone, world)
    assert score is not None, "the source has labels"
    return score


@contextlib.contextmanager
def _patched(patch: tuple[Any, str, Any] | None) -> Iterator[None]:
    if patch is None:
        yield
        return
    with mock.patch.object(*patch):
        yield


if __name__ == "__main__":
    typer.run(main)
