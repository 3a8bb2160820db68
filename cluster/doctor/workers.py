"""Trials of a cluster's workers: the link between them, the exactness of gradients, and a dry run of a recipe."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from cluster.connect import Background, failure_reason
from cluster.launch import start_workers, training_error
from cluster.run_directory import RunDirectory
from cluster.trainer import torch_trainer
from ssl_dist.collectives import World
from ssl_dist.config import ResolvedConfig
from ssl_dist.errors import SslDistError
from ssl_dist.settings import ClusterConfig
from ssl_dist.training.exactness import Finding

DRY_STEPS = 20
_WARM_UP_STEPS = 5  # the first of them, which are not timed
_REDUCED = 1 << 24  # float32 numbers that workers add up, 64 MiB


class Link(NamedTuple):
    """The link between workers: seconds for an all-reduce of one number, and bytes/s of each rank for 64 MiB."""

    workers: int
    latency_s: float
    rate: float


class DryRun(NamedTuple):
    """The measurements of a dry run; its first steps are not timed.

    Attributes:
        peak_mb: memory of worker 0, which has the most to do: resident memory, or its GPU's.
        whole_run_s: how long the whole run would take at this rate, without probes and checkpoints.
    """

    images_per_s: float
    peak_mb: float
    whole_run_s: float


def try_workers(cluster: ClusterConfig, exact: bool, method: str | None) -> tuple[Link, list[Finding]]:
    """Time all-reduces between the cluster's workers; if ``exact``, compare their gradients with one process's.

    Args:
        method: whose gradients are compared (``ssl_dist.training.exactness``); None: those of every method.

    Raises:
        SslDistError: a worker failed.
    """
    (latency_s, rate), findings = _on_workers(_try, cluster, exact=exact, method=method)
    return Link(cluster.workers.max, latency_s, rate), [Finding(*values) for values in findings]


def dry_run(config: ResolvedConfig, folder: Path) -> DryRun:
    """Run the first steps of a recipe in a run directory that is deleted afterwards.

    Raises:
        SslDistError: the run failed.
    """
    from ssl_dist.training.metrics import read_metrics

    plan = config.plan()
    monitor = config.monitor.model_copy(update={"every_steps": _WARM_UP_STEPS})
    steps = min(DRY_STEPS, plan.total_steps)
    augment = config.augment.without_small_views()  # so a run that has some takes at most the time that this tells
    epochs = steps / plan.steps_per_epoch + 1e-9
    short = config.model_copy(update={"monitor": monitor, "probe": None, "augment": augment, "epochs": epochs})
    with tempfile.TemporaryDirectory(dir=folder, prefix="doctor-") as place:
        run = RunDirectory.create(Path(place) / "run", short)
        workers = start_workers(short, run)
        _wait(workers)
        if error := training_error(workers, run):
            raise error
        laps = [line for line in read_metrics(run.path) if "speed/images_per_s" in line]
    rate = statistics.median(lap["speed/images_per_s"] for lap in laps[1:] or laps)
    return DryRun(rate, laps[-1]["memory/peak_mb"], plan.total_steps * config.batch.size / rate)


def _on_workers(function: Callable[[dict[str, Any]], Any], cluster: ClusterConfig, **settings: Any) -> Any:
    """Call a function on every worker; return rank 0's result."""
    once = cluster.model_copy(update={"max_failures": 0})
    settings = {"gpu": once.gpu, **settings}
    with tempfile.TemporaryDirectory() as folder:
        trainer = torch_trainer(function, settings, once, Path(folder) / "doctor")
        workers = Background(lambda: trainer.fit().return_value)
        workers.start()
        _wait(workers)
    if workers.error:
        raise SslDistError(f"the workers could not be checked: {failure_reason(workers.error)}")
    return workers.result


def _wait(workers: Background) -> None:
    while workers.is_alive():
        workers.join(timeout=0.25)  # Ctrl-C comes through between two calls


def _try(settings: dict[str, Any]) -> tuple[tuple[float, float], list[tuple[Any, ...]]]:
    """Measure the link on every worker, and examine exactness if that is asked for; return plain values."""
    from cluster.worker import current_world

    world = current_world(settings["gpu"])
    link = _time_all_reduce(world)
    return link, _examine(world, settings["method"]) if settings["exact"] else []


def _examine(world: World, method: str | None) -> list[tuple[Any, ...]]:
    from ssl_dist.training.exactness import examine

    return [tuple(finding) for finding in examine(world, [method] if method else None)]


def _time_all_reduce(world: World) -> tuple[float, float]:
    """Return the median seconds of 30 small all-reduces, and the median rate of 5 large ones, on every worker."""
    import torch

    def seconds(numbers: int, repeats: int) -> float:
        values, times = torch.zeros(numbers, device=world.device), []
        for _ in range(repeats + 1):
            began = time.perf_counter()
            world.sum_(values)
            values[0].item()  # waits for the device
            times.append(time.perf_counter() - began)
        return statistics.median(times[1:])

    return seconds(1, 30), 4 * _REDUCED / seconds(_REDUCED, 5)
