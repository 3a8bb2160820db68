"""Writers of stores on a Ray cluster: ``store.build(source, destination, workers=ray_writers(...))``, append, merge.

The driver lists the source, cuts it into shards and names them (see ``ssl_dist/store/building``); a Ray task writes one
shard, with one CPU. All nodes see destination and source at the same path: on a shared file system or, for the source,
at a URI. Files travel as names; members of tars and tables are read by the driver and wait in Ray's object store. The
store is byte for byte the same for any number of workers. If a task of a dead driver still writes, nobody renames its
file to a shard.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

from cluster.connect import ray_with_capacity
from cluster.tasks import (
    RETRIES,
    TaskQueue,
    changed_files,
    expect_source_seen,
    expect_versions,
    node_name,
    versions,
    with_absolute_paths,
)
from ssl_dist.errors import ClusterError, ConfigError
from ssl_dist.settings import ClusterConfig
from ssl_dist.store.building.lock import read_token
from ssl_dist.store.building.shard_writer import ShardJob, WrittenShard
from ssl_dist.store.building.sources import File
from ssl_dist.store.building.writer_pool import Writers, write_missing_shard

_RETRIES = RETRIES
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
            queue = TaskQueue(_write, at_most, say, "the writers of a shard", retries=_RETRIES)
            with contextlib.closing(queue.run((job.memory_bytes, _arguments(job)) for job in jobs)) as answers:
                for answer in answers:
                    expect_source_seen(answer.node, answer.changed)
                    yield answer.written

    return write


def _arguments(job: ShardJob) -> tuple[object, ...]:
    absolute = job._replace(members=with_absolute_paths(job.members), path=job.path.absolute())
    return absolute, read_token(job.path.parent), versions(_PACKAGES)


def _write(job: ShardJob, token: str, theirs: dict[str, str]) -> _Answer:
    """Write one shard; Ray runs this as a task.

    Args:
        token: the build's token, which the task reads from the store as well (see ``read_token``).
        theirs: the driver's packages, which must be the node's too.
    """
    node, store = node_name(), job.path.parent
    expect_versions(theirs)
    if read_token(store) != token:
        raise ClusterError(
            f"node {node} does not see the store that is being built at {store}: choose a destination on a file system"
            " that all nodes share, mounted at the same path"
        )
    written = write_missing_shard(job)
    return _Answer(written, node, changed_files(job.members, {key for key, _ in written.summary.skipped}))
