"""Checks of a cluster before money is spent on it, run on its own nodes and workers."""

from __future__ import annotations

import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cluster.connect import Background, reached, reason_of, room, trainer
from cluster.doctor.node_checks import Complaint, Node, complaints, look
from cluster.launch import ending, fit
from cluster.run_directory import RunDirectory
from ssl_dist.config import RunConfig
from ssl_dist.errors import Interrupted, RunError, SslDistError
from ssl_dist.settings import ClusterConfig
from ssl_dist.training.exactness import Finding

_NODE_S = 60  # in which a node must answer
_REDUCED = 1 << 24  # float32 that workers add up, 64 MiB
_STEPS = 20  # of the dry run
_WARM_UP = 5  # of these
_MEND_ROOM = "ask for fewer workers, or for fewer CPUs each, or add nodes"


class Link(NamedTuple):
    """Between workers: seconds of an all-reduce of one number, and bytes/s of one of 64 MiB (a rank's, by its size)."""

    workers: int
    latency_s: float
    rate: float


class DryRun(NamedTuple):
    """Twenty steps of a recipe: the last fifteen count."""

    images_per_s: float
    peak_mb: float  # of worker 0, which has the largest share: resident memory, or its GPU's
    whole_run_s: float  # as it would last at this rate, without probes and checkpoints


class Report(NamedTuple):
    """All that was found; what could not be tried is None or empty, and a complaint says why."""

    nodes: list[Node]
    complaints: list[Complaint]
    link: Link | None
    findings: list[Finding]
    dry_run: DryRun | None

    @property
    def healthy(self) -> bool:
        return not any(one.grave for one in self.complaints) and all(one.exact for one in self.findings)


def check(
    cluster: ClusterConfig,
    storage: Path,
    hosts: Sequence[str] = (),
    *,
    exact: bool = False,
    config: RunConfig | None = None,
    say: Callable[[str], None],
) -> Report:
    """Ask the nodes, then try the workers.

    Args:
        storage: absolute; folder that all nodes share.
        hosts: names or addresses of nodes that must be there.
        exact: compare gradients, too: the config's method's, or without one every method's.
        config: of a dry run.
        say: is told what is being done.

    Raises:
        ClusterError: Ray cannot be reached.
        RunError: the storage cannot be written from here.
        SslDistError: a node does not answer.
        Interrupted: Ctrl-C.
    """
    try:
        with reached(cluster) as started_here:
            say("asking the nodes")
            there = nodes(storage)
            report = Report(there, complaints(there, hosts, str(storage), alone=started_here), None, [], None)
            if (found := room(cluster)) < cluster.workers.min:
                short = Complaint("the cluster", f"has room for {found} of {cluster.workers.min} workers", _MEND_ROOM)
                return report._replace(complaints=[*report.complaints, short])
            try:
                return _try(report, cluster, storage, exact, config, say)
            except SslDistError as error:
                failed = Complaint(
                    "the workers", f"failed: {error}", "mend what else is named here, then see Ray's logs"
                )
                return report._replace(complaints=[*report.complaints, failed])
    except KeyboardInterrupt:
        raise Interrupted("stopped: nothing was kept") from None


def _try(
    report: Report,
    cluster: ClusterConfig,
    storage: Path,
    exact: bool,
    config: RunConfig | None,
    say: Callable[[str], None],
) -> Report:
    say(f"adding up on {cluster.workers.max} workers")
    report = report._replace(link=link(cluster))
    if exact:
        say(f"comparing gradients on {cluster.workers.max} workers")
        report = report._replace(findings=exactness(cluster, config.method.name if config else None))
    if config:
        say(f"dry run of {_STEPS} steps")
        report = report._replace(dry_run=dry_run(config, storage))
    return report


def nodes(storage: Path) -> list[Node]:
    """Ask every node of the cluster connected to.

    Raises:
        RunError: the storage cannot be written from here.
        SslDistError: a node does not answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    marker = f".doctor-{uuid.uuid4().hex}"
    try:
        storage.mkdir(parents=True, exist_ok=True)
        (storage / marker).touch()
    except OSError as error:
        raise RunError(f"storage {storage} cannot be written from here: {error.strerror}") from None
    found = []
    try:
        for node in (one for one in ray.nodes() if one["Alive"]):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)
            ray.get(task(_awake).remote(), timeout=_NODE_S)  # its process has to start first
            answer, spent = _asked(task(_timed_look), str(storage), marker)
            devices = {kind: number for kind, number in node["Resources"].items() if kind in ("CPU", "GPU")}
            known = {"address": node["NodeManagerAddress"], "devices": devices, "clock_s": answer.clock_s - spent}
            found.append(answer._replace(**known))
    except ray.exceptions.GetTimeoutError:
        raise SslDistError(f"node {node['NodeName']} has not answered within {_NODE_S} s: see its ray logs") from None
    except ray.exceptions.RayError as error:
        raise SslDistError(f"node {node['NodeName']} cannot answer: {reason_of(error)}") from None
    finally:
        (storage / marker).unlink()
    return found


def _awake() -> None:
    """With all that answers need imported."""


def _timed_look(storage: str, marker: str, asked_at: float) -> tuple[Node, float]:
    began = time.perf_counter()
    return look(storage, marker, asked_at), time.perf_counter() - began


def _asked(remote: Any, storage: str, marker: str) -> tuple[Node, float]:
    """An answer, and half of the time that it was under way."""
    import ray

    began = time.perf_counter()
    answer, at_work = ray.get(remote.remote(storage, marker, time.time()), timeout=_NODE_S)
    return answer, max(0.0, time.perf_counter() - began - at_work) / 2


def link(cluster: ClusterConfig) -> Link:
    """All-reduce between the cluster's workers.

    Raises:
        SslDistError: a worker failed.
    """
    latency_s, rate = _on_workers(_reduce, cluster)
    return Link(cluster.workers.max, latency_s, rate)


def exactness(cluster: ClusterConfig, method: str | None) -> list[Finding]:
    """The world-size battery of ``ssl_dist.training.exactness`` on the cluster's workers, of one method or of all.

    Raises:
        SslDistError: a worker failed.
    """
    return [Finding(*values) for values in _on_workers(_examine, cluster, method=method)]


def dry_run(config: RunConfig, folder: Path) -> DryRun:
    """Twenty steps of a recipe, in a run directory that goes when they are done.

    Raises:
        SslDistError: they failed.
    """
    from ssl_dist.report.curves import read_metrics

    assert config.data.num_samples, "the store was opened before"
    plan = config.plan(config.data.num_samples)
    monitor = config.monitor.model_copy(update={"every_steps": _WARM_UP})
    steps = min(_STEPS, plan.total_steps)
    short = config.model_copy(update={"monitor": monitor, "probe": None, "epochs": steps / plan.steps_per_epoch + 1e-9})
    with tempfile.TemporaryDirectory(dir=folder, prefix="doctor-") as place:
        run = RunDirectory.create(Path(place) / "run", short)
        work = fit(short, run)
        _wait(work)
        if error := ending(work, run):
            raise error
        laps = [line for line in read_metrics(run.path) if "speed/images_per_s" in line]
    rate = statistics.median(lap["speed/images_per_s"] for lap in laps[1:] or laps)
    return DryRun(rate, laps[-1]["memory/peak_mb"], plan.total_steps * config.batch.size / rate)


def _on_workers(function: Callable[[dict[str, Any]], Any], cluster: ClusterConfig, **settings: Any) -> Any:
    once = cluster.model_copy(update={"max_failures": 0})
    with tempfile.TemporaryDirectory() as folder:
        work = Background(
            lambda: trainer(function, {"gpu": once.gpu, **settings}, once, Path(folder) / "doctor").fit().return_value
        )
        work.start()
        _wait(work)
    if work.error:
        raise SslDistError(f"the workers could not be checked: {reason_of(work.error)}")
    return work.result


def _wait(work: Background) -> None:
    while work.is_alive():
        work.join(timeout=0.25)


def _examine(settings: dict[str, Any]) -> list[tuple[Any, ...]]:
    """On every worker; rank 0's is what comes back, as plain values."""
    from ssl_dist.collectives import World
    from ssl_dist.training.exactness import examine

    names = [settings["method"]] if settings["method"] else None
    return [tuple(finding) for finding in examine(World.current(_device(settings)), names)]


def _reduce(settings: dict[str, Any]) -> tuple[float, float]:
    """On every worker: medians of 30 small and 5 large ones."""
    import torch

    from ssl_dist.collectives import World

    world = World.current(_device(settings))

    def seconds(numbers: int, repeats: int) -> float:
        values, times = torch.zeros(numbers, device=world.device), []
        for _ in range(repeats + 1):
            began = time.perf_counter()
            world.sum_(values)
            values[0].item()  # waits for the device
            times.append(time.perf_counter() - began)
        return statistics.median(times[1:])

    return seconds(1, 30), 4 * _REDUCED / seconds(_REDUCED, 5)


def _device(settings: dict[str, Any]) -> Any:
    import torch

    if not settings["gpu"]:
        return torch.device("cpu")
    import ray.train.torch

    return ray.train.torch.get_device()
