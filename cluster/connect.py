"""The connection to Ray: reach a cluster or start one here, and count its room for workers."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import site
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import ssl_dist
from cluster.guards import check_machine
from ssl_dist.commands.console import errors, say
from ssl_dist.commands.signals import ENDING
from ssl_dist.errors import ClusterError
from ssl_dist.machine import num_cores
from ssl_dist.settings import ClusterConfig

# Ray reads these when it is imported, or in the processes that it starts.
RAY_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # unless the cluster sets a mode; without one, a local Ray would make a token
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon a dead or finished worker is noticed
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_worker_niceness": "0",
    "RAY_prestart_worker_first_driver": "0",  # these have no use: workers of a run have an environment of their own
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_REACH_S = 10
_START_TRIES = 3

DIED = "worker process has died"  # in Ray's text on a worker that raised nothing

log = logging.getLogger(__name__)


@contextlib.contextmanager
def ray_with_capacity(cluster: ClusterConfig, *, drivers: int = 0) -> Iterator[bool]:
    """Connect to Ray like ``ray_connection``, and refuse a machine or a cluster that has no room for the workers.

    Raises:
        ClusterError: Ray cannot be reached or started, or has no room for the workers.
    """
    check_machine(cluster)
    with ray_connection(cluster, drivers=drivers) as started_here:
        import ray

        found = worker_capacity(cluster, drivers)
        if found < cluster.workers.min:  # also where a cluster grows by itself; Ray would wait without end
            each = " and ".join(f"{number:g} {kind}" for kind, number in worker_resources(cluster).items())
            nodes = sum(node["Alive"] for node in ray.nodes())
            kept = f" beside {drivers} CPU for drivers" if drivers else ""
            raise ClusterError(
                f"cluster.workers {cluster.workers.min} of {each} each: Ray's {nodes} node(s) have room for"
                f" {found}{kept}; ask for fewer workers, or for fewer CPUs each, or add nodes"
            )
        yield started_here


@contextlib.contextmanager
def ray_connection(cluster: ClusterConfig, *, drivers: int = 0) -> Iterator[bool]:
    """Connect to the cluster of RAY_ADDRESS or of an earlier ray.init, or start Ray here; yield whether it started.

    Args:
        drivers: CPUs to keep for the drivers of runs, beside the workers' CPUs; a Ray that is started here has them in
            addition.

    Raises:
        ClusterError: Ray cannot be reached or started.
    """
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    # Ray prints texts of its daemons to standard output, such as guesses at why a worker died.
    ray._private.worker.print_to_stdstream = lambda data, **_: log.info("%s", data["lines"])
    if ray.is_initialized():
        yield False
        return
    address = os.environ.get("RAY_ADDRESS")
    try:
        with _signals_kept():
            _connect_to(address) if address else _start(cluster, drivers)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = next(iter(str(error).splitlines()), repr(error))
        if "AF_UNIX" in reason:
            name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
            reason = (
                f"{name}={os.environ.get(name)} is too long for its sockets: set RAY_TMPDIR to a short one, as /tmp"
            )
        failed = f"the Ray cluster at RAY_ADDRESS={address} cannot be reached" if address else "Ray cannot start here"
        raise ClusterError(f"{failed}: {reason}") from None
    except KeyboardInterrupt:
        ray.shutdown()
        raise
    try:
        yield not address
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Let signals that end this process wait until Ray has started, since it may crash when it ends before that.

    A second one does not wait. Ray installs no handler of its own for SIGTERM where this process has one. Its processes
    inherit that SIGHUP is blocked, so that the workers of a run whose terminal closes can write a checkpoint.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in ENDING}
    ours, came = [number for number, handler in before.items() if callable(handler)], list[int]()

    def wait(number: int, frame: FrameType | None) -> None:
        if came:
            before[number](number, frame)
        came.append(number)
        say("stopping once Ray has started; Ctrl-C again to stop at once", errors)

    for number in ours:
        signal.signal(number, wait)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    with mock.patch("ray._private.utils.set_sigterm_handler") if signal.SIGTERM in ours else contextlib.nullcontext():
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # one that came meanwhile is handled here
            for number in ours:
                signal.signal(number, before[number])
    if came:
        before[came[0]](came[0], None)


def _connect_to(address: str) -> None:
    """Connect to a cluster, and fail at once where nobody listens; Ray itself would try for minutes."""
    import ray

    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_REACH_S).close()
    config = None if address.startswith("ray://") else _job_config()  # a Ray client gives workers no folder
    ray.init(address=address, job_config=config, log_to_driver=False, logging_level=logging.ERROR)


def _job_config() -> Any:
    """Return a job's config with which workers import these packages, and nothing of the caller's working directory.

    Ray would put that directory and the script's before all others: a file ``tune.py`` there would be executed.
    """
    import ray.job_config

    class JobConfig(ray.job_config.JobConfig):  # type: ignore[misc]
        def _runtime_env_has_working_dir(self) -> bool:
            return True  # as if the job had a working directory of its own: Ray adds no other

    packages = str(Path(ssl_dist.__file__).parents[1])
    installed = packages in (*site.getsitepackages(), site.getusersitepackages())
    return JobConfig(_py_driver_sys_path=[] if installed else [packages])


def _start(cluster: ClusterConfig, drivers: int) -> None:
    """Start Ray on this machine, again where its processes took longer than the 30 s that Ray waits for them."""
    import ray

    _check_port(cluster.dashboard_port)
    for tries_left in reversed(range(_START_TRIES)):
        try:
            ray.init(
                address="local",
                # logical CPUs: the doctor may try more workers than cores, which are slow, but they work
                num_cpus=max(num_cores(), math.ceil(cluster.workers.min * cluster.cpus_per_worker)) + drivers,
                # without a dashboard Ray never frees the resources of workers that an actor (a trial) drives
                include_dashboard=cluster.dashboard_port is not None or drivers > 0,
                dashboard_host="127.0.0.1",
                dashboard_port=cluster.dashboard_port,
                job_config=_job_config(),
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            return
        except Exception as error:  # Ray has no class of its own for this one
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            if not tries_left:
                raise RuntimeError(f"its processes did not start in {_START_TRIES} times 30 s: is it busy?") from None


def _check_port(port: int | None) -> None:
    """Refuse a port that is in use; Ray would take another one without a word."""
    if port is None:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ClusterError(
                f"cluster.dashboard_port {port}: {error.strerror}; choose another, or leave it out for no dashboard"
            ) from None


def worker_capacity(cluster: ClusterConfig, drivers: int = 0) -> int:
    """Return how many workers fit into the connected cluster at once, with ``drivers`` CPUs of one node kept free."""
    import ray

    need = worker_resources(cluster)
    nodes = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    largest = max(nodes, key=lambda node: node.get("CPU", 0.0))
    largest["CPU"] = largest.get("CPU", 0.0) - drivers
    return sum(max(0, min(int(node.get(kind, 0.0) / number) for kind, number in need.items())) for node in nodes)


class Background(threading.Thread):
    """A thread that calls one function, so that the main thread keeps Ctrl-C, which Ray would take from it.

    Attributes:
        result: what the function returned.
        error: what the function raised instead.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(name="ray", daemon=True)
        self._function = function
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self._function()
        except BaseException as error:  # the main thread reads it
            self.error = error


def failure_reason(error: BaseException) -> str:
    """Say in one line why a fit failed: name the first worker that did more than lose its connection to another."""
    failures = sorted((getattr(error, "worker_failures", None) or {0: error}).items())
    lines = [(rank, last_line(reason)) for rank, reason in failures]
    rank, line = min(lines, key=lambda one: 1 if DIED in one[1] else 2 if "onnection" in one[1] else 0)
    if "out of memory" in line:  # Ray's own guard; what follows is advice on its settings
        return f"worker {rank} was killed because its machine's memory ran out"
    if DIED in line:  # a crash would stand in the worker's log
        return f"worker {rank} was killed without a word, most often because its machine's memory ran out"
    return f"worker {rank} failed ({line})"


def last_line(reason: BaseException) -> str:
    """Return the last line of an error's text; in Ray's errors it is what the remote process raised."""
    return next((text.strip() for text in reversed(str(reason).splitlines()) if text.strip()), repr(reason))


def worker_resources(cluster: ClusterConfig) -> dict[str, float]:
    """Return the resources of one worker, by Ray's names for them."""
    return {"CPU": cluster.cpus_per_worker} | ({"GPU": 1.0} if cluster.gpu else {})
