"""Writers of stores on a Ray cluster: ``store.build(source, destination, workers=ray_writers(...))``, append, merge.

The driver lists the source, cuts it into shards and names them (see ``ssl_dist/store/building``); a Ray task writes one
shard, with one CPU. All nodes see destination and source at the same path: on a shared file system or, for the source,
at a URI. Files travel as names; members of tars and tables are read by the driver and wait in Ray's object store. The
store is byte for byte the same for any number of workers. Ray repeats a task whose node or process was lost, and ends
the tasks of a dead driver; if such a task still writes, nobody renames its file to a shard.
"""

from __future__ import annotations

import importlib.metadata
import os
import socket
from collections import deque
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cluster.connect import last_line, ray_with_capacity
from ssl_dist import __version__
from ssl_dist.errors import ClusterError, ConfigError, SslDistError
from ssl_dist.settings import ClusterConfig
from ssl_dist.store.building.lock import read_token
from ssl_dist.store.building.shard_writer import ShardJob, WrittenShard
from ssl_dist.store.building.sources import File
from ssl_dist.store.building.sources.base import to_unicode
from ssl_dist.store.building.sources.files import local_file
from ssl_dist.store.building.writer_pool import Writers, write_missing_shard

_RETRIES = 5  # times that Ray repeats a task whose node or process was lost
_CANCEL_S = 10  # cancelled tasks should have ended after this time
_PACKAGES = ("pillow", "numpy", "pyarrow")  # a shard's bytes depend on their versions


class _Answer(NamedTuple):
    """A task's result: the shard, the node that wrote it, and local files that differ there from the driver's list."""

    written: WrittenShard
    node: str
    changed: list[File]


def ray_writers(at_most: int | None = None, say: Callable[[str], None] = lambda _: None) -> Writers:
    """Return writers that run as Ray tasks.

    They use the Ray that this process is connected to, the cluster of RAY_ADDRESS, or a Ray started here.

    Args:
        at_most: largest number of tasks at once; None: one for each CPU of the cluster, also of nodes that join later.
        say: gets a text with the number of workers.

    Returns:
        Writers that also raise ClusterError: Ray cannot be reached or started, or has no CPU; a node does not see the
        destination or the source, or has other packages; a shard's task was lost too often.

    Raises:
        ConfigError: ``at_most`` is less than 1.
    """
    if at_most is not None and at_most < 1:
        raise ConfigError(f"workers {at_most}: at least 1 is needed")

    def write(jobs: Iterator[ShardJob]) -> Generator[WrittenShard, None, None]:
        with ray_with_capacity(ClusterConfig.model_validate({"workers": {"min": 1, "max": at_most or 1}})):
            queue = _TaskQueue(at_most, say)
            try:
                for job in jobs:
                    while (done := queue.first_is_done()) or not queue.has_room(job):
                        if done:
                            yield queue.take_first()
                        else:
                            queue.wait_for_one()
                    queue.submit(job)
                while queue:
                    yield queue.take_first()
            finally:
                queue.cancel()

    return write


class _TaskQueue:
    """The submitted tasks in the order of their jobs.

    It holds twice as many tasks as may run at once: a task that is done waits until those before it are done.
    """

    def __init__(self, at_most: int | None, say: Callable[[str], None]) -> None:
        import ray

        self._at_most, self._say = at_most, say
        self._task = ray.remote(num_cpus=1, max_retries=_RETRIES, scheduling_strategy="SPREAD")(_write)
        self._tasks = deque[Any]()  # references to answers
        self._running: dict[Any, int] = {}  # tasks that are not done, with their bytes in the object store
        self._max_bytes = _object_store_bytes() // 2

    def __len__(self) -> int:
        return len(self._tasks)

    def first_is_done(self) -> bool:
        import ray

        if self._running:
            for task in ray.wait(list(self._running), num_returns=len(self._running), timeout=0)[0]:
                del self._running[task]
        return bool(self._tasks) and self._tasks[0] not in self._running

    def has_room(self, job: ShardJob) -> bool:
        """Return whether a job may be submitted now; a job of any size may when no other is running."""
        import ray

        cpus = max(1, int(ray.cluster_resources().get("CPU", 0)))
        self._say(f"{min(cpus, self._at_most or cpus)} workers")
        number = self._at_most or 2 * cpus  # half of them wait in Ray's queue, so that no CPU is idle
        fits = job.memory_bytes + sum(self._running.values()) <= self._max_bytes or not self._running
        return len(self._running) < number and len(self._tasks) < 2 * number and fits

    def wait_for_one(self) -> None:
        """Wait until one more task is done."""
        import ray

        ray.wait(list(self._running), num_returns=1)

    def submit(self, job: ShardJob) -> None:
        task = self._task.remote(_with_absolute_paths(job), read_token(job.path.parent), _versions())
        self._tasks.append(task)
        self._running[task] = job.memory_bytes

    def take_first(self) -> WrittenShard:
        """Wait for the first task, and return what it wrote.

        Raises:
            ClusterError: the task was lost too often, or its node does not see the source.
            SslDistError: the task raised it; so do OSError and errors of our own.
        """
        import ray

        task = self._tasks.popleft()
        self._running.pop(task, None)
        try:
            answer: _Answer = ray.get(task)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, SslDistError | OSError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            raise ClusterError(f"the writers of a shard were lost ({last_line(error)}): call again to resume") from None
        for file in answer.changed:
            if _is_as_listed(file):
                raise ClusterError(
                    f"node {answer.node} does not see {file.path} as this machine does: mount the source at the same"
                    " path on all nodes, or name it by a URI"
                )
        return answer.written

    def cancel(self) -> None:
        """Stop the tasks that are not done."""
        import ray

        for task in self._tasks:
            ray.cancel(task)
        if self._tasks:
            ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=_CANCEL_S)


def _object_store_bytes() -> int:
    """Return the size of this node's object store, from which tasks on other nodes fetch their jobs."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return int(next(node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["NodeID"] == here))


def _versions() -> dict[str, str]:
    return {"ssl_dist": __version__, **{package: importlib.metadata.version(package) for package in _PACKAGES}}


def _with_absolute_paths(job: ShardJob) -> ShardJob:
    """Make local paths absolute, because a task runs in another working directory."""
    members = [
        member._replace(content=file._replace(path=str(Path(file.path).absolute())))
        if isinstance(file := member.content, File) and file.filesystem is None
        else member
        for member in job.members
    ]
    return job._replace(members=members, path=job.path.absolute())


def _write(job: ShardJob, token: str, versions: dict[str, str]) -> _Answer:
    """Write one shard; Ray runs this as a task.

    Args:
        token: the build's token, which the task reads from the store as well (see ``read_token``).
        versions: the driver's packages, which must be the node's too.
    """
    import ray

    node, store = f"{socket.gethostname()} ({ray.util.get_node_ip_address()})", job.path.parent
    for package, version in _versions().items():
        if version != versions[package]:
            raise ClusterError(
                f"node {node} has {package} {version}, and the machine that builds {versions[package]}: install the"
                " same constraints.txt on all nodes"
            )
    if read_token(store) != token:
        raise ClusterError(
            f"node {node} does not see the store that is being built at {store}: choose a destination on a file system"
            " that all nodes share, mounted at the same path"
        )
    written = write_missing_shard(job)
    return _Answer(written, node, _changed_files(job, written))


def _changed_files(job: ShardJob, written: WrittenShard) -> list[File]:
    """Return the local files that are not as they were listed, of the first, the last, and the unreadable ones."""
    skipped = {key for key, _ in written.summary.skipped}
    first, last = job.members[0], job.members[-1]
    checked = [first, last, *(member for member in job.members if to_unicode(member.key) in skipped)]
    files = [member.content for member in checked if isinstance(member.content, File)]
    return [file for file in files if file.filesystem is None and not _is_as_listed(file)]


def _is_as_listed(file: File) -> bool:
    return local_file(file.path, file.key).stamp == file.stamp and os.access(file.path, os.R_OK)
