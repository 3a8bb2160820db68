"""Training steps end to end, ours beside lightly's loop and a bare one: images a second, waiting, views, memory.

Loops take turns. Their first steps, which choose kernels, compile or fill a loader's queues, are not counted.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer

from benchmarks import transforms
from benchmarks.cuda import synthetic
from benchmarks.cuda.loops import Bare, Lightly, Loop, Ours, ViewsTimes
from benchmarks.cuda.measure import Record, default_device, say, table, wait_for
from benchmarks.processes import cpu_seconds
from ssl_dist.commands.options import overrides_of
from ssl_dist.config import RunConfig
from ssl_dist.config.overrides import put_override

_WARM_UP, _PROBED = 5, 10  # steps


class Net(NamedTuple):
    """A network, its images and its batch; ``images`` are the synthetic ones of the store."""

    backbone: str
    stem: str
    px: int
    batch: int
    micro: int
    images: int
    width: int | None = None


NETS = {
    "resnet18-32": Net("resnet18", "small", 32, 512, 512, 16384),
    "resnet50-96": Net("resnet50", "standard", 96, 512, 256, 8192),
    "resnet50-224": Net("resnet50", "standard", 224, 256, 256, 4096),
}
LOOPS = ("ours", "bare", "bare-compiled", "lightly")


def main(
    nets: Annotated[str, typer.Option(help="Names of networks, by commas.")] = ",".join(NETS),
    contenders: Annotated[str, typer.Option(help="Names of loops, by commas.")] = ",".join(LOOPS),
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = default_device(),
    seconds: Annotated[float, typer.Option(help="Time of a turn, s.")] = 4.0,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each loop.")] = 2,
    images: Annotated[int | None, typer.Option(min=2, help="Images of a store. Default: each network's.")] = None,
    batch: Annotated[int | None, typer.Option(min=2, help="Images of a step, one micro-batch.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes of lightly's loader.")] = os.cpu_count() or 1,
    settings: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Setting of ours.")] = [],  # noqa: B006
    profiles: Annotated[bool, typer.Option("--profile", help="Print what the steps' time goes to.")] = False,
) -> None:
    """Measure each network and print JSON lines."""
    torch.backends.cudnn.benchmark = True  # as the product's engine sets it for the whole process
    where = torch.device(device)
    wanted = contenders.split(",")
    if "lightly" in wanted and not transforms.installed(["lightly"]):
        wanted.remove("lightly")
        say(where, {"part": "end-to-end", "contender": "lightly", "missing": "lightly"})
    for name in nets.split(","):
        net = NETS[name]
        net = net._replace(images=images or net.images)
        net = net._replace(batch=batch, micro=batch) if batch else net
        torch.compiler.reset()  # else the second size of an image makes a network that takes any size, and is slower
        with tempfile.TemporaryDirectory() as folder:
            pixels = synthetic.images(net.images, net.px)
            synthetic.write_store(Path(folder) / "store", pixels)
            config = config_of(net, Path(folder) / "store", where, overrides_of(settings))
            about = {"part": "end-to-end", "net": name, "batch": config.batch.size}
            _measure(_makers(config, pixels, where, workers, wanted), config, where, about, seconds, rounds, profiles)


def config_of(net: Net, store: Path, device: torch.device, overrides: dict[str, Any]) -> RunConfig:
    """Return the settings of a run as a person would write them."""
    tree: dict[str, Any] = {
        "data": {"store": str(store)},
        "augment": {"recipe": transforms.policy_name(net.px)},
        "backbone": {"name": net.backbone, "stem": net.stem, "width": net.width},
        "method": {"name": "simclr", "temperature": 0.5, "projection_dim": 128},
        "batch": {"size": net.batch, "micro": net.micro},
        "optim": {"name": "sgd", "lr": 0.03, "weight_decay": 5e-4, "warmup_epochs": 0},
        "engine": {"precision": "bf16", "zero_stage": 1},
        "probe": None,
        "cluster": {"gpu": device.type == "cuda"},
    }
    for key, value in overrides.items():
        put_override(tree, key, value)
    return RunConfig.from_tree(tree, "benchmark")


def _makers(
    config: RunConfig, pixels: np.ndarray, device: torch.device, workers: int, wanted: list[str]
) -> dict[str, Callable[[], Loop]]:
    makers: dict[str, Callable[[], Loop]] = {
        "ours": lambda: Ours(config, device),
        "bare": lambda: Bare(config, pixels, device, compiled=False),
        "bare-compiled": lambda: Bare(config, pixels, device, compiled=True),
        "lightly": lambda: Lightly(config, pixels, device, workers),
    }
    return {name: makers[name] for name in wanted}


def _measure(
    makers: dict[str, Callable[[], Loop]],
    config: RunConfig,
    device: torch.device,
    about: Record,
    seconds: float,
    rounds: int,
    profiles: bool,
) -> None:
    """Let the loops take turns and print a record of each; one that fails is left out and named."""
    loops, turns = dict[str, Loop](), dict[str, list[Record]]()
    resident, started_s = dict[str, int](), dict[str, float]()
    for name, make in makers.items():
        with _failure_named(device, {**about, "contender": name}):
            before, began = _allocated(device), time.perf_counter()
            loop = make()
            turn(loop, config.batch.size, device, 0)
            loops[name], turns[name], resident[name] = loop, [], _allocated(device) - before
            started_s[name] = time.perf_counter() - began
    for _ in range(rounds):
        for name, loop in loops.items():
            with _failure_named(device, {**about, "contender": name}):
                turns[name].append(turn(loop, config.batch.size, device, seconds))
    for name, loop in loops.items():
        if not turns[name]:
            continue
        medians = {key: statistics.median(one[key] for one in turns[name]) for key in turns[name][0]}
        if "peak_extra_bytes" in medians:
            medians["peak_bytes"] = medians.pop("peak_extra_bytes") + resident[name]
        record = {**about, "contender": name, **medians, "start_s": started_s[name]}
        record |= {"all_images_per_s": [one["images_per_s"] for one in turns[name]]}
        if isinstance(loop, Ours):
            record |= {"settings": config.engine.model_dump(), "micro": config.batch.micro}
            with _failure_named(device, {**about, "contender": name}):
                record |= _views(loop, device)
        say(device, record)
        if profiles:
            with _failure_named(device, {**about, "contender": name}), closing(loop.steps()) as steps:
                say(device, {**about, "contender": name, "profile": table(partial(next, steps), device)})
    for loop in loops.values():
        if isinstance(loop, Ours):
            loop.close()


@contextmanager
def _failure_named(device: torch.device, about: Record) -> Iterator[None]:
    """Print a record of an error and go on: the other loops can be measured, and time on the device is scarce."""
    try:
        yield
    except Exception as error:
        say(device, {**about, "failed": f"{type(error).__name__}: {error}"[:500]})


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def turn(loop: Loop, batch: int, device: torch.device, seconds: float, warm_up: int = _WARM_UP) -> Record:
    """Train for about ``seconds`` after a warm-up; return the rates and the peak of this turn's memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # of what the other loops have freed
    with closing(loop.steps()) as steps:
        for _ in range(max(warm_up, loop.burst)):
            next(steps)
        wait_for(device)
        before = _allocated(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        cpu_began, waited, done, began = cpu_seconds(), loop.waited_s, 0, time.perf_counter()
        while not done or done % loop.burst or time.perf_counter() - began < seconds:
            next(steps)
            done += 1
        wait_for(device)
        took = time.perf_counter() - began
        cpu_s = cpu_seconds() - cpu_began
    record = {
        "images_per_s": done * batch / took,
        "step_ms": took / done * 1e3,
        "data_wait_share": (loop.waited_s - waited) / took,
        "cpu_ms_per_image": cpu_s / done / batch * 1e3,
    }
    if device.type == "cuda":
        record["peak_extra_bytes"] = torch.cuda.max_memory_allocated(device) - before
    return record


def _views(loop: Ours, device: torch.device) -> Record:
    """Return the time that views take in a step, and their share of the step's time."""
    steps, times = loop.steps(), ViewsTimes(device)
    with times.measured():
        wait_for(device)
        began = time.perf_counter()
        for _ in range(_PROBED):
            next(steps)
        wait_for(device)
        took_ms = (time.perf_counter() - began) * 1e3
    each = {"views_ms": times.total_ms / _PROBED, "views_host_ms": times.host_ms / _PROBED}
    return {"views_calls": times.calls / _PROBED, **each, "views_share": times.total_ms / took_ms}
