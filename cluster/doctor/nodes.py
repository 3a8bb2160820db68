"""The state of each node of a cluster: versions, clock, disk, memory and storage, as the node itself finds them."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import socket
import time
import uuid
from pathlib import Path
from typing import Any, NamedTuple

from cluster.connect import failure_reason
from ssl_dist import __version__
from ssl_dist.errors import RunError, SslDistError

PACKAGES = ("ray", "torch", "deepspeed", "pyarrow")
_NODE_S = 60  # a node must answer within this time
_CLOCK_QUESTIONS = 5
_PROBE_BYTES = 32 << 20  # written to the storage and read again


class Node(NamedTuple):
    """One node's answers.

    Attributes:
        versions: of Python, this package and ``PACKAGES``.
        devices: CPUs and GPUs as Ray counts them.
        clock_s: the node's clock minus the asking machine's.
        disk_free: bytes free in Ray's temporary folder.
        shared_memory: bytes of /dev/shm.
        write_rate, read_rate: bytes/s of the storage; 0 where ``storage_error`` says why it cannot be written.
        storage_seen: the node sees the file that the asking machine wrote there.
        token: token authentication is on for the node's processes.
    """

    name: str
    address: str
    versions: dict[str, str]
    devices: dict[str, float]
    clock_s: float
    disk_free: int
    shared_memory: int
    write_rate: float
    read_rate: float
    storage_error: str
    storage_seen: bool
    token: bool


def ask_nodes(storage: Path) -> list[Node]:
    """Ask every node of the connected cluster.

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
            answer = ray.get(task(describe_this_node).remote(str(storage), marker), timeout=_NODE_S)
            devices = {kind: number for kind, number in node["Resources"].items() if kind in ("CPU", "GPU")}
            clock_s = _clock_difference(task(_time))
            found.append(answer._replace(address=node["NodeManagerAddress"], devices=devices, clock_s=clock_s))
    except ray.exceptions.GetTimeoutError:
        raise SslDistError(f"node {node['NodeName']} has not answered within {_NODE_S} s: see its ray logs") from None
    except ray.exceptions.RayError as error:
        raise SslDistError(f"node {node['NodeName']} cannot answer: {failure_reason(error)}") from None
    finally:
        (storage / marker).unlink()
    return found


def _time() -> float:
    return time.time()  # Ray takes no built-in function


def _clock_difference(remote_time: Any) -> float:
    """Ask a node for its time repeatedly, and return its clock minus ours by the quickest answer, which errs least."""
    import ray

    answers = []
    for _ in range(_CLOCK_QUESTIONS):
        asked = time.time()
        there = ray.get(remote_time.remote(), timeout=_NODE_S)
        answers.append((time.time() - asked, there - (asked + time.time()) / 2))
    return float(min(answers)[1])


def describe_this_node(storage: str, marker: str) -> Node:
    """Describe the node on which this is called; the asking machine adds address, devices and clock.

    Args:
        storage: the folder that all nodes should share.
        marker: name of a file that the asking machine wrote there.
    """
    folder = Path(storage)
    write_rate, read_rate, error = _rates(folder)
    versions = {"python": platform.python_version(), "ssl_dist": __version__}  # as imported, not as installed
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    shm = Path("/dev/shm")
    return Node(
        name=socket.gethostname(),
        address="",
        versions=versions,
        devices={},
        clock_s=0.0,
        disk_free=shutil.disk_usage("/tmp").free,
        shared_memory=shutil.disk_usage(shm).total if shm.exists() else 0,
        write_rate=write_rate,
        read_rate=read_rate,
        storage_error=error,
        storage_seen=(folder / marker).exists(),
        token=os.environ.get("RAY_AUTH_MODE") == "token",
    )


def _rates(folder: Path) -> tuple[float, float, str]:
    """Return bytes/s written, bytes/s read, and the error if there was one.

    Where the system can drop the file from its cache, it is read from the storage.
    """
    file, content = folder / f".doctor-{uuid.uuid4().hex}", os.urandom(_PROBE_BYTES)
    try:
        began = time.perf_counter()
        with file.open("wb") as target:
            target.write(content)
            target.flush()
            os.fsync(target.fileno())
            written = time.perf_counter()
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(target.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        reading = time.perf_counter()
        file.read_bytes()
        return _PROBE_BYTES / (written - began), _PROBE_BYTES / (time.perf_counter() - reading), ""
    except OSError as error:
        return 0.0, 0.0, error.strerror or repr(error)
    finally:
        with contextlib.suppress(OSError):
            file.unlink()
