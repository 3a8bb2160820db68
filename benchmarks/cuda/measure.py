"""Measurement on one device: times of calls, the kernels that they launch, and records as JSON lines."""

from __future__ import annotations

import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Record = dict[str, Any]
Call = Callable[[], Any]
Mark = Any  # a CUDA event, or on a CPU the seconds of its clock

_WARM_UP, _IN_A_ROW = 5, 10  # calls that are not measured; calls between two waits for the device
_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def default_device() -> str:
    """Return "cuda" where there is such a device, otherwise "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def say(device: torch.device, record: Record) -> Record:
    """Print a record as a JSON line with the device's name and torch's version; return it."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu"
    print(json.dumps({"device": name, "torch": torch.__version__, **record}), flush=True)
    return record


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(call: Call, device: torch.device, seconds: float) -> list[float]:
    """Return the time of each of the calls that fit into ``seconds``, by CUDA events on a CUDA device.

    Calls follow each other without a wait, as in training; so one that launches more slowly than the device computes
    takes the time of its launches.
    """
    for _ in range(_WARM_UP):
        call()
    wait_for(device)
    began, times = time.perf_counter(), list[float]()
    while not times or time.perf_counter() - began < seconds:
        times += _events_of(call, device) if device.type == "cuda" else [_clock_of(call)]
    return times


def _events_of(call: Call, device: torch.device) -> list[float]:
    events = [torch.cuda.Event(enable_timing=True) for _ in range(_IN_A_ROW + 1)]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    wait_for(device)
    return [first.elapsed_time(second) for first, second in itertools.pairwise(events)]


def mark(device: torch.device) -> Mark:
    """Return a mark of this moment in the device's work; ``elapsed`` gives the milliseconds between two."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def elapsed(first: Mark, second: Mark) -> float:
    """Return the milliseconds between two marks; the device has passed both."""
    return (second - first) * 1e3 if isinstance(first, float) else float(first.elapsed_time(second))


def _clock_of(call: Call) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3


def host_milliseconds(call: Call, device: torch.device) -> float:
    """Return the median time that a call keeps the host before it returns, when the device has nothing else to do."""
    times = []
    for _ in range(_IN_A_ROW):
        wait_for(device)
        times.append(_clock_of(call))
    wait_for(device)
    return statistics.median(times)


def launches(call: Call, device: torch.device, calls: int = 3) -> Record:
    """Return how many kernels a call launches, and how often it waits for the device."""
    counts = {event.key: event.count for event in profiled(call, device, calls)}

    def each(names: tuple[str, ...]) -> float:
        return float(sum(count for key, count in counts.items() if key.startswith(names))) / calls

    # the profile itself ends with one wait for the device
    waits = max(0.0, each(_WAITS) - (1 / calls if device.type == "cuda" else 0))
    return {"kernels": round(each(_LAUNCHES), 1), "copies": each(("cudaMemcpy",)), "waits": round(waits, 1)}


def profiled(call: Call, device: torch.device, calls: int) -> list[Any]:
    """Return torch's profile of these calls: the averages of each operation, kernel and call of CUDA's runtime."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    call()
    wait_for(device)
    with profile(activities=activities) as found:
        for _ in range(calls):
            call()
        wait_for(device)
    return list(found.key_averages())


def table(call: Call, device: torch.device, calls: int = 5, rows: int = 25) -> Record:
    """Return the operations and the kernels that take the most time, in milliseconds a call."""
    events = profiled(call, device, calls)
    kernels = [event for event in events if event.device_type.name == "CUDA"]
    operations = [event for event in events if event.device_type.name == "CPU"]
    on_device = device.type == "cuda"

    def own(event: Any) -> float:
        return float(event.self_device_time_total if on_device else event.self_cpu_time_total)

    def lines(of: list[Any]) -> list[Record]:
        return [
            {
                "name": event.key[:120],
                "calls": event.count / calls,
                "device_ms": round(event.self_device_time_total / calls / 1e3, 3),
                "host_ms": round(event.self_cpu_time_total / calls / 1e3, 3),
            }
            for event in sorted(of, key=own, reverse=True)[:rows]
        ]

    launched = sum(event.count for event in events if event.key.startswith(_LAUNCHES)) / calls
    busy = sum(event.self_device_time_total for event in kernels) / calls / 1e3
    return {
        "kernels_a_call": launched,
        "device_ms": round(busy, 3),
        "operations": lines(operations),
        "kernels": lines(kernels),
    }
