"""A queue of Ray tasks whose results are taken in order, and what a node must have in common with the driver.

Ray repeats a task whose node or process was lost, and ends the tasks of a dead driver.
"""

from __future__ import annotations

import importlib.metadata
import os
import socket
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from cluster.connect import last_line
from ssl_dist import __version__
from ssl_dist.errors import ClusterError, SslDistError
from ssl_dist.store.building.sources import File, Member
from ssl_dist.store.building.sources.base import to_unicode
from ssl_dist.store.building.sources.files import local_file

RETRIES = 5  # times that Ray repeats a task whose node or process was lost
_CANCEL_S = 10  # cancelled tasks should have ended after this time


class TaskQueue:
    """The submitted tasks in their order.

    It holds twice as many tasks as may run at once: a task that is done waits until those before it are done.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        at_most: int | None,
        say: Callable[[str], None],
        lost: str,
        device: str = "CPU",
        retries: int = RETRIES,
    ) -> None:
        """Make an empty queue.

        Args:
            function: what each task calls; it runs with one CPU.
            at_most: largest number of tasks at once; None: one for each device of the cluster, also of nodes that join
                later.
            say: gets a text with the number of workers.
            lost: who computes a task, for the message where it was lost too often.
            device: "CPU", or "GPU": a task has one of its own then.
        """
        import ray

        self._at_most, self._say, self._lost, self._device = at_most, say, lost, device
        options = {"num_cpus": 1, "num_gpus": int(device == "GPU"), "max_retries": retries}
        self._task = ray.remote(scheduling_strategy="SPREAD", **options)(function)
        self._tasks = deque[Any]()  # references to results
        self._running: dict[Any, int] = {}  # tasks that are not done, with their bytes in the object store
        self._max_bytes = object_store_bytes() // 2

    def __len__(self) -> int:
        return len(self._tasks)

    def run(self, jobs: Iterator[tuple[int, tuple[Any, ...]]]) -> Generator[Any, None, None]:
        """Submit tasks while there is room, and yield their results in order; closing this stops the tasks.

        Args:
            jobs: the bytes that a task's arguments take, and the arguments.
        """
        try:
            for num_bytes, arguments in jobs:
                while (done := self.first_is_done()) or not self.has_room(num_bytes):
                    if done:
                        yield self.take_first()
                    else:
                        self.wait_for_one()
                self.submit(num_bytes, *arguments)
            while self:
                yield self.take_first()
        finally:
            self.cancel()

    def first_is_done(self) -> bool:
        """Return whether the result of the first task can be taken at once."""
        import ray

        if self._running:
            for task in ray.wait(list(self._running), num_returns=len(self._running), timeout=0)[0]:
                del self._running[task]
        return bool(self._tasks) and self._tasks[0] not in self._running

    def has_room(self, num_bytes: int) -> bool:
        """Return whether a task of this size may be submitted now; one of any size may when no other is running."""
        import ray

        number = max(1, int(ray.cluster_resources().get(self._device, 0)))
        self._say(f"{min(number, self._at_most or number)} workers")
        most = self._at_most or 2 * number  # half of them wait in Ray's queue, so that no CPU is idle
        fits = num_bytes + sum(self._running.values()) <= self._max_bytes or not self._running
        return len(self._running) < most and len(self._tasks) < 2 * most and fits

    def wait_for_one(self) -> None:
        """Wait until one more task is done."""
        import ray

        ray.wait(list(self._running), num_returns=1)

    def submit(self, num_bytes: int, *arguments: Any) -> None:
        """Submit a task, whose arguments take so many bytes."""
        task = self._task.remote(*arguments)
        self._tasks.append(task)
        self._running[task] = num_bytes

    def take_first(self) -> Any:
        """Wait for the first task, and return its result.

        Raises:
            ClusterError: the task was lost too often.
            SslDistError: the task raised it; so do OSError and errors of our own.
        """
        import ray

        task = self._tasks.popleft()
        self._running.pop(task, None)
        try:
            return ray.get(task)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, SslDistError | OSError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            raise ClusterError(f"{self._lost} were lost ({last_line(error)}): call again to resume") from None

    def cancel(self) -> None:
        """Stop the tasks that are not done."""
        import ray

        for task in self._tasks:
            ray.cancel(task)
        if self._tasks:
            ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=_CANCEL_S)


def object_store_bytes() -> int:
    """Return the size of this node's object store, from which tasks on other nodes fetch their arguments."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return int(next(node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["NodeID"] == here))


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of this package and of others, on which the bytes depend that tasks write."""
    return {"ssl_dist": __version__, **{package: importlib.metadata.version(package) for package in packages}}


def node_name() -> str:
    """Return this node's name and address, for messages."""
    import ray

    return f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"


def expect_versions(theirs: dict[str, str]) -> None:
    """Raise ClusterError where this node has another version of a package than the driver."""
    for package, version in versions([name for name in theirs if name != "ssl_dist"]).items():
        if version != theirs[package]:
            raise ClusterError(
                f"node {node_name()} has {package} {version}, and the machine that started this {theirs[package]}:"
                " install the same constraints.txt on all nodes"
            )


def with_absolute_paths(members: Sequence[Member]) -> list[Member]:
    """Make local paths absolute, because a task runs in another working directory."""
    return [
        member._replace(content=file._replace(path=str(Path(file.path).absolute())))
        if isinstance(file := member.content, File) and file.filesystem is None
        else member
        for member in members
    ]


def changed_files(members: Sequence[Member], unread: set[str]) -> list[File]:
    """Return the local files that are not as they were listed, of the first, the last, and the unread ones."""
    checked = [members[0], members[-1], *(member for member in members if to_unicode(member.key) in unread)]
    files = [member.content for member in checked if isinstance(member.content, File)]
    return [file for file in files if file.filesystem is None and not _is_as_listed(file)]


def expect_source_seen(node: str, changed: Sequence[File]) -> None:
    """Raise ClusterError where a node saw other files than this machine; those that changed here too may differ."""
    for file in changed:
        if _is_as_listed(file):
            raise ClusterError(
                f"node {node} does not see {file.path} as this machine does: mount the source at the same"
                " path on all nodes, or name it by a URI"
            )


def _is_as_listed(file: File) -> bool:
    return local_file(file.path, file.key).stamp == file.stamp and os.access(file.path, os.R_OK)
