"""Drive a run: reach or start Ray, hand the workers to TorchTrainer, draw the bar, end well on Ctrl-C."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shlex
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from rich.console import Console

from cluster.run_directory import RunDirectory
from ssl_dist.config import RunConfig
from ssl_dist.errors import ClusterError, Interrupted, SslDistError

# Read by Ray when it is imported, or by the processes that it starts.
_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # unless the cluster sets one; unset, a local Ray would turn tokens on in the home
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon a dead or finished worker is noticed
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_POLL_S = 0.25
_REACH_S = 10


def launch(config: RunConfig, run: RunDirectory, console: Console) -> dict[str, Any]:
    """Run to the end, or until Ctrl-C.

    Returns:
        Rank 0's last metrics and ``step``.

    Raises:
        Interrupted: stopped by Ctrl-C, with a checkpoint.
        ClusterError: Ray cannot be reached, or has not what ``config.cluster`` asks for.
        SslDistError: what ended the workers.
    """
    with _ray(config) as started_here, _interrupts(run, console) as interrupts:
        if started_here:
            console.print(f"local Ray, {config.cluster.workers} worker(s)", highlight=False)
        outcome = _Fit(config, run)
        outcome.start()
        _follow(outcome, run, console)
    if error := run.read_error():
        raise error
    if outcome.error:
        raise _explain(outcome.error, run)
    if interrupts.asked:
        raise Interrupted(f"stopped; go on with: {resume_command(run)}")
    return outcome.metrics


def resume_command(run: RunDirectory) -> str:
    """The line that goes on with a run."""
    return f"ssl-dist pretrain --resume {shlex.quote(str(run.path))}"


class _Fit(threading.Thread):
    """TorchTrainer.fit beside the main thread, which Ray would else take Ctrl-C from."""

    def __init__(self, config: RunConfig, run: RunDirectory) -> None:
        super().__init__(name="ray-train-fit", daemon=True)
        self._config, self._run = config, run
        self.error: BaseException | None = None
        self.metrics: dict[str, Any] = {}

    def run(self) -> None:
        try:
            self.metrics = self._trainer().fit().return_value or {}
        except BaseException as error:  # handed to the main thread
            self.error = error

    def _trainer(self) -> Any:
        import ray.train
        from ray.train.torch import TorchConfig, TorchTrainer

        from cluster.worker import train

        cluster, path = self._config.cluster, self._run.path
        resources = {"CPU": cluster.cpus_per_worker} | ({"GPU": 1.0} if cluster.gpu else {})
        return TorchTrainer(
            train,
            train_loop_config={"config": self._config.model_dump(mode="json"), "directory": str(path)},
            torch_config=TorchConfig(backend="nccl" if cluster.gpu else "gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=cluster.workers, use_gpu=cluster.gpu, resources_per_worker=resources
            ),
            # Ray's directory of the run is ours: our checkpoints lie in it, and are reported where they are.
            run_config=ray.train.RunConfig(
                name=path.name,
                storage_path=str(path.parent),
                failure_config=ray.train.FailureConfig(max_failures=cluster.max_failures),
            ),
        )


def _follow(fit: _Fit, run: RunDirectory, console: Console) -> None:
    """The bar, until the fit ends."""
    from ssl_dist.monitor import ProgressBar

    with ProgressBar(run.path, console) as bar:
        while fit.is_alive():
            fit.join(timeout=_POLL_S)
            bar.update()


@contextlib.contextmanager
def _ray(config: RunConfig) -> Iterator[bool]:
    """Connected to the cluster of RAY_ADDRESS (or of an earlier ray.init), or to a Ray started for this run (True)."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    if ray.is_initialized():
        _check_resources(config)
        yield False
        return
    cluster = config.cluster
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            _check_reachable(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            _check_port(cluster.dashboard_port)
            # logical CPUs: more workers than cores are slow, not wrong
            cpus = max(os.cpu_count() or 1, math.ceil(cluster.workers * cluster.cpus_per_worker))
            dashboard = {"dashboard_host": "127.0.0.1", "dashboard_port": cluster.dashboard_port}
            dashboard = dashboard if cluster.dashboard_port else {}
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=bool(dashboard),
                log_to_driver=False,
                logging_level=logging.ERROR,
                **dashboard,
            )
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = next(iter(str(error).splitlines()), repr(error))
        where = (
            f"the Ray cluster at RAY_ADDRESS={address} cannot be reached" if address else "Ray cannot be started here"
        )
        raise ClusterError(f"{where}: {reason}") from None
    try:
        _check_resources(config)
        yield not address
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """A quick no where nobody listens; Ray itself would go on asking for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_REACH_S).close()


def _check_port(port: int | None) -> None:
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


def _check_resources(config: RunConfig) -> None:
    """Refuse what would wait for ever. A cluster that grows by itself must have grown as far as the run needs."""
    import ray

    cluster = config.cluster
    need = {"CPU": cluster.cpus_per_worker} | ({"GPU": 1.0} if cluster.gpu else {})
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(min(int(node.get(kind, 0.0) / number) for kind, number in need.items()) for node in nodes)
    if room < cluster.workers:
        each = " and ".join(f"{number:g} {kind}" for kind, number in need.items())
        raise ClusterError(
            f"cluster.workers {cluster.workers} of {each} each: Ray's {len(nodes)} node(s) have room for {room};"
            " lower cluster.workers or cluster.cpus_per_worker, or add nodes"
        )


class _Interrupts:
    """The first Ctrl-C (or SIGTERM) asks the workers to stop, the second kills them."""

    def __init__(self, run: RunDirectory, console: Console) -> None:
        self.asked = False
        self._run, self._console = run, console

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._run.ask_to_stop()
        self._console.print(
            "stopping after this step, with a checkpoint; Ctrl-C again to stop at once", highlight=False
        )


@contextlib.contextmanager
def _interrupts(run: RunDirectory, console: Console) -> Iterator[_Interrupts]:
    handler = _Interrupts(run, console)
    if threading.current_thread() is not threading.main_thread():
        yield handler  # signals are the main thread's
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield handler
    except KeyboardInterrupt:
        raise Interrupted(f"stopped at once; the newest checkpoint goes on with: {resume_command(run)}") from None
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _explain(error: BaseException, run: RunDirectory) -> SslDistError:
    """One line for whatever ended the fit: the first worker that did not merely lose its connection to another."""
    failures = sorted((getattr(error, "worker_failures", None) or {0: error}).items())
    lines = [(rank, _last_line(reason)) for rank, reason in failures]
    rank, line = next((one for one in lines if "onnection" not in one[1]), lines[0])
    return SslDistError(f"worker {rank} failed ({line}): see {run.path}/worker-*.log, then {resume_command(run)}")


def _last_line(reason: BaseException) -> str:
    return next((text.strip() for text in reversed(str(reason).splitlines()) if text.strip()), repr(reason))
