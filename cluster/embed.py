"""Tasks of an embedding on a Ray cluster: ``embedding.embed(run, images, out, executor=ray_executor())``.

The driver lists the images and cuts them into parts; a Ray task computes one part, with one CPU, or with a GPU where
the cluster has some. All nodes see the run, the images and the folder of the parts at the same path: on a shared file
system or, for run and images, at a URI. The images are cut in their order, so the file has the same bytes for any
number of nodes of one kind.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from cluster.connect import ray_with_capacity
from cluster.tasks import (
    TaskQueue,
    changed_files,
    expect_source_seen,
    expect_versions,
    node_name,
    versions,
    with_absolute_paths,
)
from ssl_dist.embedding.parts import PACKAGES, Parts
from ssl_dist.errors import ClusterError, SslDistError
from ssl_dist.settings import ClusterConfig
from ssl_dist.store.building.sources import File

if TYPE_CHECKING:
    from ssl_dist.embedding.parts import Done
    from ssl_dist.embedding.tasks import Count, Executor, Job, Opened, Task


class _Answer(NamedTuple):
    """A task's result: what is done, the node that did it, and files that differ there from the driver's list."""

    done: Done
    node: str
    changed: list[File]


def ray_executor(say: Callable[[str], None] = lambda _: None) -> Executor:
    """Return an executor whose tasks run on the nodes of Ray.

    It uses the Ray that this process is connected to, the cluster of RAY_ADDRESS, or a Ray started here. It also raises
    ClusterError: Ray cannot be reached or started; a node does not see the run, the images or the folder of the parts
    as this machine does, or has other packages; a task was lost too often.

    Args:
        say: gets a text with the number of workers.
    """

    def run(tasks: Iterator[Task], opened: Opened, count: Count) -> Generator[Done, None, None]:
        import ray

        with ray_with_capacity(ClusterConfig.model_validate({"workers": 1})):
            device = "GPU" if ray.cluster_resources().get("GPU") else "CPU"
            queue = TaskQueue(_run, None, say, "the workers of a part", device)
            with contextlib.closing(queue.run(map(_submitted, tasks))) as answers:
                for answer, images in answers:
                    expect_source_seen(answer.node, answer.changed)
                    count(images)
                    yield answer.done

    return run


def _submitted(task: Task) -> tuple[int, tuple[Any, ...]]:
    members = getattr(task, "images", None)
    if isinstance(members, list):
        task = task._replace(images=with_absolute_paths(members))  # type: ignore[call-arg]
    return task.memory_bytes, (task, Parts(task.job.folder).token(), versions(PACKAGES))


def _run(task: Task, token: str, theirs: dict[str, str]) -> tuple[_Answer, int]:
    """Run one task unless its part is there; Ray runs this.

    Args:
        token: of the folder of the parts, which the task reads there as well.
        theirs: the driver's packages, which must be the node's too.

    Returns:
        (answer, images that were computed now).
    """
    expect_versions(theirs)
    node, folder = node_name(), task.job.folder
    if Parts(folder).token() != token:
        raise ClusterError(
            f"node {node} does not see {folder}: choose an OUT on a file system that all nodes share, mounted at the"
            " same path"
        )
    counted = list[int]()
    done = task.done() or task.run(_open(task.job), counted.append)
    members = getattr(task, "images", None)
    changed = changed_files(members, {key for key, _ in done.left_out}) if isinstance(members, list) else []
    return _Answer(done, node, changed), sum(counted)


@functools.lru_cache(maxsize=1)
def _open(job: Job) -> Opened:
    """Load the encoder and open the store of a job, once in each process.

    Raises:
        ClusterError: they are not here what they are for the driver.
    """
    from ssl_dist.embedding.images import open_images
    from ssl_dist.embedding.tasks import Opened, encoder_digest
    from ssl_dist.encoder import load_encoder
    from ssl_dist.store import ImageStore

    where = "mount it at the same path on all nodes, or name it by a URI"
    try:
        encoder = load_encoder(job.run, job.checkpoint)
        is_same = encoder_digest(encoder) == job.encoder
    except SslDistError as error:
        raise ClusterError(f"node {node_name()} cannot load the encoder ({error}): {where}") from None
    if not is_same:
        raise ClusterError(f"node {node_name()} loads another encoder at RUN: {where}")
    if job.store is None:
        return Opened(encoder, None)
    try:
        is_same = open_images(job.store).digest == job.images
    except SslDistError as error:
        raise ClusterError(f"node {node_name()} cannot open the store ({error}): {where}") from None
    if not is_same:
        raise ClusterError(f"node {node_name()} sees another store at STORE: {where}")
    return Opened(encoder, ImageStore(job.store))
