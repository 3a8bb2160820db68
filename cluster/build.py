"""Shards written by Ray tasks on all nodes: ``store.build(source, destination, workers=tasks(...))``, append, merge.

The driver lists the source, cuts it and gives each shard its name (see ``ssl_dist/store/write.py``); a task writes one
shard, with one CPU. Destination and source lie where all nodes see them, at the same path: a shared file system, or for
the source a URI. Files travel as names; what a tar or a table holds is read by the driver, and waits in Ray's object
store. The result is byte for byte that of any other number of workers. Ray runs a task again whose node or process was
lost, and ends those of a dead driver; should one live on, nobody gives its shard a name.
"""

from __future__ import annotations

import importlib.metadata
import os
import socket
from collections import deque
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cluster.connect import connected, last_line
from ssl_dist import __version__
from ssl_dist.errors import ClusterError, ConfigError, SslDistError
from ssl_dist.settings import ClusterConfig
from ssl_dist.store.building.lock import token_of
from ssl_dist.store.building.shard_writer import Piece, Written
from ssl_dist.store.building.sources import File
from ssl_dist.store.building.sources.base import text
from ssl_dist.store.building.sources.files import local
from ssl_dist.store.building.writer_pool import Writers, write_piece

_RETRIES = 5  # of a task whose node or process was lost
_END_S = 10  # for tasks that are told to end
_MAKERS = ("pillow", "numpy", "pyarrow")  # packages that a shard's bytes depend on


class _Answer(NamedTuple):
    """A task's: what it wrote, where, and which local files are not there what they were when the source was listed."""

    written: Written
    node: str
    changed: list[File]


def tasks(at_most: int | None = None, say: Callable[[str], None] = lambda _: None) -> Writers:
    """Tasks on the cluster of RAY_ADDRESS, on the Ray that this process is connected to, or on one started here.

    Args:
        at_most: that run at once; None: one a CPU of the cluster, also of nodes that join later.
        say: is told how many there are.

    Returns:
        Writers that raise also ClusterError: Ray cannot be reached or started, or has no CPU; a node does not see the
        destination or the source, or has other packages; a shard's task was lost again and again.

    Raises:
        ConfigError: a number less than 1.
    """
    if at_most is not None and at_most < 1:
        raise ConfigError(f"workers {at_most}: at least 1 is needed")

    def write(pieces: Iterator[Piece]) -> Generator[Written, None, None]:
        with connected(ClusterConfig.model_validate({"workers": {"min": 1, "max": at_most or 1}})):
            flight = _Flight(at_most, say)
            try:
                for piece in pieces:
                    while (done := flight.first_is_done()) or not flight.has_room(piece):
                        if done:
                            yield flight.take()
                        else:
                            flight.wait()
                    flight.begin(piece)
                while flight:
                    yield flight.take()
            finally:
                flight.end()

    return write


class _Flight:
    """Tasks in the order of their pieces: twice as many as may run, of which those that ran wait for the first."""

    def __init__(self, at_most: int | None, say: Callable[[str], None]) -> None:
        import ray

        self._at_most, self._say = at_most, say
        self._task = ray.remote(num_cpus=1, max_retries=_RETRIES, scheduling_strategy="SPREAD")(_write)
        self._tasks = deque[Any]()  # references to answers
        self._held: dict[Any, int] = {}  # bytes in the object store, of tasks that are not done
        self._most_held = _object_store_bytes() // 2

    def __len__(self) -> int:
        return len(self._tasks)

    def first_is_done(self) -> bool:
        import ray

        if self._held:
            for task in ray.wait(list(self._held), num_returns=len(self._held), timeout=0)[0]:
                del self._held[task]
        return bool(self._tasks) and self._tasks[0] not in self._held

    def has_room(self, piece: Piece) -> bool:
        """May it begin now? However large, it may when no other is running."""
        import ray

        cpus = max(1, int(ray.cluster_resources().get("CPU", 0)))
        self._say(f"{min(cpus, self._at_most or cpus)} workers")
        number = self._at_most or 2 * cpus  # half of them wait in Ray's queue: a CPU has the next one at once
        fits = piece.held_bytes + sum(self._held.values()) <= self._most_held or not self._held
        return len(self._held) < number and len(self._tasks) < 2 * number and fits

    def wait(self) -> None:
        """Until one more is done."""
        import ray

        ray.wait(list(self._held), num_returns=1)

    def begin(self, piece: Piece) -> None:
        task = self._task.remote(_absolute(piece), token_of(piece.path.parent), _versions())
        self._tasks.append(task)
        self._held[task] = piece.held_bytes

    def take(self) -> Written:
        """What the first wrote.

        Raises:
            As the writers of ``tasks``.
        """
        import ray

        task = self._tasks.popleft()
        self._held.pop(task, None)
        try:
            answer: _Answer = ray.get(task)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, SslDistError | OSError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            raise ClusterError(f"the writers of a shard were lost ({last_line(error)}): call again to go on") from None
        for file in answer.changed:
            if _is_as_listed(file):
                raise ClusterError(
                    f"node {answer.node} does not see {file.path} as this machine does: mount the source at the same"
                    " path on all nodes, or name it by a URI"
                )
        return answer.written

    def end(self) -> None:
        """Stop those that are not done."""
        import ray

        for task in self._tasks:
            ray.cancel(task)
        if self._tasks:
            ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=_END_S)


def _object_store_bytes() -> int:
    """Of this node's, from which tasks elsewhere fetch their pieces."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return int(next(node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["NodeID"] == here))


def _versions() -> dict[str, str]:
    return {"ssl_dist": __version__, **{package: importlib.metadata.version(package) for package in _MAKERS}}


def _absolute(piece: Piece) -> Piece:
    """With local paths that do not depend on a process' folder."""
    members = [
        member._replace(content=file._replace(path=str(Path(file.path).absolute())))
        if isinstance(file := member.content, File) and file.filesystem is None
        else member
        for member in piece.members
    ]
    return piece._replace(members=members, path=piece.path.absolute())


def _write(piece: Piece, token: str, versions: dict[str, str]) -> _Answer:
    """The task.

    Args:
        token: that of the build, where the store is seen: see ``token_of``.
    """
    import ray

    node, store = f"{socket.gethostname()} ({ray.util.get_node_ip_address()})", piece.path.parent
    for package, version in _versions().items():
        if version != versions[package]:
            raise ClusterError(
                f"node {node} has {package} {version}, and the machine that builds {versions[package]}: install the"
                " same constraints.txt on all nodes"
            )
    if token_of(store) != token:
        raise ClusterError(
            f"node {node} does not see the store that is being built at {store}: choose a destination on a file system"
            " that all nodes share, mounted at the same path"
        )
    written = write_piece(piece)
    return _Answer(written, node, _changed(piece, written))


def _changed(piece: Piece, written: Written) -> list[File]:
    """The first and last file, and those that could not be read, where they are local and not as they were listed."""
    skipped = {key for key, _ in written.shard.skipped}
    first, last = piece.members[0], piece.members[-1]
    looked_at = [first, last, *(member for member in piece.members if text(member.key) in skipped)]
    files = [member.content for member in looked_at if isinstance(member.content, File)]
    return [file for file in files if file.filesystem is None and not _is_as_listed(file)]


def _is_as_listed(file: File) -> bool:
    return local(file.path, file.key).stamp == file.stamp and os.access(file.path, os.R_OK)
