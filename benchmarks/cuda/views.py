"""SimCLR's two views of a batch that lies on the device, ours beside kornia's: views a second, kernels, host time."""

from __future__ import annotations

import statistics
import warnings
from typing import Annotated, NamedTuple

import torch
import typer
from torch import Tensor

from benchmarks import transforms
from benchmarks.cuda.measure import Call, Record, default_device, host_milliseconds, launches, milliseconds, say
from ssl_dist import augment


class Task(NamedTuple):
    """Views of ``px`` x ``px`` pixels of ``images`` images of that size."""

    images: int
    px: int


TASKS = (Task(512, 32), Task(512, 96), Task(256, 224))


def _ours(pixels: Tensor, dtype: torch.dtype) -> Call:
    ids, policy = torch.arange(len(pixels), device=pixels.device), transforms.policy_name(pixels.shape[1])
    return lambda: augment.views(pixels, ids, seed=0, epoch=0, recipe=policy, dtype=dtype)


def _kornia(pixels: Tensor) -> Call:
    make = transforms.kornia(pixels.shape[1])
    return lambda: make(pixels)


def main(
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = default_device(),
    images: Annotated[int | None, typer.Option(min=1, help="Most images of a batch. Default: no limit.")] = None,
    seconds: Annotated[float, typer.Option(help="Time of a turn, s.")] = 1.0,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each contender.")] = 3,
) -> None:
    """Measure each size and print JSON lines."""
    where = torch.device(device)
    with_kornia = bool(transforms.installed(["kornia"]))
    if not with_kornia:
        say(where, {"part": "views", "contender": "kornia", "missing": "kornia"})
    for task in TASKS:
        count = min(images or task.images, task.images)
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (count, task.px, task.px, 3), dtype=torch.uint8, generator=generator).to(where)
        calls = {"ours": _ours(pixels, torch.float32), "ours, bf16": _ours(pixels, torch.bfloat16)}
        if with_kornia:
            calls["kornia"] = _kornia(pixels)
        about = {"part": "views", "px": task.px, "images": count}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # kornia calls deprecated functions of its own
            times: dict[str, list[float]] = {name: [] for name in calls}
            for _ in range(rounds):
                for name, call in calls.items():
                    times[name] += milliseconds(call, where, seconds)
            for name, call in calls.items():
                say(where, {**about, "contender": name, **_figures(call, times[name], 2 * count, where)})


def _figures(call: Call, times: list[float], views: int, device: torch.device) -> Record:
    median = statistics.median(times)
    record: Record = {"ms": median, "views_per_s": views / median * 1e3, "calls": len(times)}
    record |= {"host_ms": host_milliseconds(call, device), **launches(call, device)}
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        record["peak_extra_bytes"] = torch.cuda.max_memory_allocated(device) - before
    return record
