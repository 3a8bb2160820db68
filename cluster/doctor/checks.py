"""The order of the checks: ask the nodes first, then try the workers, and put everything into one report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from cluster.connect import ray_connection, worker_capacity
from cluster.doctor import workers
from cluster.doctor.complaints import Complaint, find_complaints
from cluster.doctor.nodes import Node, ask_nodes
from cluster.doctor.workers import DryRun, Link
from ssl_dist.config import ResolvedConfig
from ssl_dist.errors import Interrupted, SslDistError
from ssl_dist.settings import ClusterConfig
from ssl_dist.training.exactness import Finding

_Say = Callable[[str], None]
_MEND_CAPACITY = "ask for fewer workers, or for fewer CPUs each, or add nodes"


class Report(NamedTuple):
    """The results of all checks; what could not be tried is None or empty, and a complaint says why."""

    nodes: list[Node]
    complaints: list[Complaint]
    link: Link | None
    findings: list[Finding]
    dry_run: DryRun | None

    @property
    def healthy(self) -> bool:
        return not any(one.grave for one in self.complaints) and all(one.exact for one in self.findings)

    def _with_complaint(self, where: str, what: str, mend: str) -> Report:
        return self._replace(complaints=[*self.complaints, Complaint(where, what, mend)])


def check(
    cluster: ClusterConfig,
    storage: Path,
    hosts: Sequence[str] = (),
    *,
    exact: bool = False,
    config: ResolvedConfig | None = None,
    say: _Say,
) -> Report:
    """Check the nodes, then the workers.

    Args:
        storage: absolute path of the folder that all nodes share.
        hosts: names or addresses of nodes that must be there.
        exact: compare gradients as well, of the config's method, or of every method without a config.
        config: recipe of a dry run.
        say: gets a text for each check that begins.

    Raises:
        ClusterError: Ray cannot be reached.
        RunError: the storage cannot be written from here.
        SslDistError: a node does not answer.
        Interrupted: Ctrl-C.
    """
    try:
        with ray_connection(cluster) as started_here:
            say("asking the nodes")
            nodes = ask_nodes(storage)
            report = Report(nodes, find_complaints(nodes, hosts, str(storage), alone=started_here), None, [], None)
            if (found := worker_capacity(cluster)) < cluster.workers.min:
                what = f"has room for {found} of {cluster.workers.min} workers"
                return report._with_complaint("the cluster", what, _MEND_CAPACITY)
            try:
                return _check_workers(report, cluster, storage, exact, config, say)
            except SslDistError as error:
                mend = "mend the other complaints first, then see Ray's logs"
                return report._with_complaint("the workers", f"failed: {error}", mend)
    except KeyboardInterrupt:
        raise Interrupted("stopped: nothing was kept") from None


def _check_workers(
    report: Report, cluster: ClusterConfig, storage: Path, exact: bool, config: ResolvedConfig | None, say: _Say
) -> Report:
    say(f"adding up {'and comparing gradients ' * exact}on {cluster.workers.max} workers")
    link, findings = workers.try_workers(cluster, exact, config.method.name if config else None)
    report = report._replace(link=link, findings=findings)
    if config:
        say(f"dry run of {workers.DRY_STEPS} steps")
        report = report._replace(dry_run=workers.dry_run(config, storage))
    return report
