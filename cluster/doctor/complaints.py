"""The rules by which a cluster's nodes are judged: pure functions from the nodes' answers to complaints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from cluster.doctor.nodes import PACKAGES, Node

_CLOCK_S = 2.0  # a larger difference confuses logs and file times, and certificates and tokens may fail
_DISK_BYTES = 5 << 30
_SHARED_MEMORY_BYTES = 1 << 30


class Complaint(NamedTuple):
    """Something wrong at ``where``, and how to mend it; if not ``grave``, the cluster works, but badly."""

    where: str
    what: str
    mend: str
    grave: bool = True


def find_complaints(nodes: list[Node], hosts: Sequence[str], storage: str, *, alone: bool = False) -> list[Complaint]:
    """Return everything that is wrong with a cluster.

    Args:
        hosts: addresses or names of the nodes that should be in the cluster; none: any nodes will do.
        alone: this is a Ray of one node that was started for the checks, which needs no token.
    """
    mend = "start Ray there, with the same ~/.ray/auth_token, and see its ray logs"
    missing = [host for host in hosts if not any(host in (node.address, node.name) for node in nodes)]
    found = [Complaint(host, "is not in the cluster", mend) for host in missing]
    for node in nodes:
        found += [Complaint(node.name, *one) for one in _wrong_with(node, nodes, storage)]
        if not (node.token or alone):
            mend = "export RAY_AUTH_MODE=token before ray start"
            found.append(Complaint(node.name, "runs without token authentication", mend, grave=False))
    for (name, address), times in Counter((node.name, node.address) for node in nodes).items():
        if times > 1:
            what = f"is in the cluster {times} times, with its CPUs counted as often ({address})"
            found.append(Complaint(name, what, "ray stop there, then start Ray once", grave=False))
    return found


def _wrong_with(node: Node, nodes: list[Node], storage: str) -> list[tuple[str, str, bool]]:
    """Return (what, mend, grave) of everything that is wrong with one node, also compared with the others."""
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
        what = f"{storage} cannot be written: {node.storage_error}"
        found.append((what, "mount it there, and make it writable", True))
    elif not node.storage_seen:
        found.append((f"{storage} is another folder there", "mount the same shared file system on all nodes", True))
    return found
