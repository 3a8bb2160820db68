"""What a node is asked, and what is wrong with the answers: plain data and pure functions, but for ``look``."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import socket
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ssl_dist import __version__

PACKAGES = ("ray", "torch", "deepspeed", "pyarrow")
_PROBE_BYTES = 32 << 20  # written to the storage and read again
_CLOCK_S = 2.0  # apart: logs and file times are confusing, certificates and tokens may fail
_DISK_BYTES = 5 << 30
_SHARED_MEMORY_BYTES = 1 << 30


class Node(NamedTuple):
    """One node's answers.

    Attributes:
        versions: of Python, this package and ``PACKAGES``.
        devices: CPUs and GPUs as Ray counts them.
        clock_s: its clock less the asker's, in the middle of the question.
        disk_free, shared_memory: bytes, of Ray's temporary folder and of /dev/shm.
        write_rate, read_rate: bytes/s of the storage; 0 where it cannot be written, for ``storage_error``.
        storage_seen: does it see the file that the asker wrote there?
        token: is token authentication on for its processes?
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


class Complaint(NamedTuple):
    """What is wrong ``where``, and how to mend it; not ``grave``: it works, but badly."""

    where: str
    what: str
    mend: str
    grave: bool = True


def look(storage: str, marker: str, asked_at: float) -> Node:
    """Answer for this node.

    Args:
        storage: folder that all nodes should share.
        marker: name of a file that the asker wrote there.
        asked_at: the asker's time.
    """
    clock_s = time.time() - asked_at
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
        clock_s=clock_s,
        disk_free=shutil.disk_usage("/tmp").free,
        shared_memory=shutil.disk_usage(shm).total if shm.exists() else 0,
        write_rate=write_rate,
        read_rate=read_rate,
        storage_error=error,
        storage_seen=(folder / marker).exists(),
        token=os.environ.get("RAY_AUTH_MODE") == "token",
    )


def _rates(folder: Path) -> tuple[float, float, str]:
    """Bytes/s written and read again, from the storage where the system can be told to forget; and why not."""
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


def complaints(nodes: Sequence[Node], hosts: Sequence[str], storage: str, *, alone: bool = False) -> list[Complaint]:
    """What is wrong with a cluster.

    Args:
        hosts: addresses or names that should be in it; none: whatever there is.
        alone: it is a Ray of one node that was started for the checks, and needs no token.
    """
    found = [
        Complaint(
            host, "is not in the cluster", "start Ray there, with the same ~/.ray/auth_token, and see its ray logs"
        )
        for host in hosts
        if not any(host in (node.address, node.name) for node in nodes)
    ]
    for node in nodes:
        found += [Complaint(node.name, what, mend, grave) for what, mend, grave in _of(node, nodes, storage)]
        if not (node.token or alone):
            mend = "export RAY_AUTH_MODE=token before ray start"
            found.append(Complaint(node.name, "runs without token authentication", mend, grave=False))
    for (name, address), times in Counter((node.name, node.address) for node in nodes).items():
        if times > 1:
            what = f"is in the cluster {times} times, with its CPUs counted as often ({address})"
            found.append(Complaint(name, what, "ray stop there, then start Ray once", grave=False))
    return found


def _of(node: Node, nodes: Sequence[Node], storage: str) -> list[tuple[str, str, bool]]:
    found = []
    for package in ("python", "ssl_dist", *PACKAGES):
        usual = Counter(other.versions.get(package, "none") for other in nodes).most_common(1)[0][0]
        here = node.versions.get(package, "none")
        if here != usual:
            what = f"{package} is {here}, elsewhere {usual}"
            found.append((what, "install the same constraints.txt on all nodes", True))
    median = sorted(other.clock_s for other in nodes)[len(nodes) // 2]
    if abs(node.clock_s - median) > _CLOCK_S:
        found.append((f"its clock is {node.clock_s - median:+.1f} s off", "start chrony or ntpd there", True))
    if node.disk_free < _DISK_BYTES:
        what = f"{node.disk_free / 1e9:.1f} GB are free in /tmp"
        found.append((what, "Ray spills and logs there: free 5 GB, or start Ray with --temp-dir", True))
    if node.shared_memory < _SHARED_MEMORY_BYTES:
        what = f"/dev/shm has {node.shared_memory / 1e9:.1f} GB"
        found.append((what, "mount -o remount,size=4G /dev/shm, or docker run --shm-size=4g", False))
    if node.storage_error:
        found.append(
            (f"{storage} cannot be written: {node.storage_error}", "mount it there, and let it be written", True)
        )
    elif not node.storage_seen:
        found.append((f"{storage} is another folder there", "mount the same shared file system on all nodes", True))
    return found
