"""The report of the doctor as tables on the screen."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.doctor.checks import Report
from cluster.doctor.complaints import Complaint
from cluster.doctor.nodes import Node
from ssl_dist.commands.console import say
from ssl_dist.training.exactness import Finding


def show_report(console: Console, report: Report) -> None:
    """Print a report."""
    _nodes(console, report.nodes)
    if link := report.link:
        latency = f"all-reduce of one number {link.latency_s * 1e3:.2f} ms, of 64 MiB {link.rate / 1e6:,.0f} MB/s"
        say(f"{link.workers} workers: {latency}", console)
    if trial := report.dry_run:
        speed = f"{trial.images_per_s:,.0f} images/s, {trial.peak_mb:,.0f} MB in worker 0"
        whole = f"the whole run would take {_duration(trial.whole_run_s)}, without probes and checkpoints"
        say(f"dry run: {speed}; {whole}", console)
    if report.findings:
        _findings(console, report.findings)
    _complaints(console, report.complaints)


def _nodes(console: Console, nodes: Sequence[Node]) -> None:
    table = Table(
        "node", "address", "devices", "Ray", "torch", "clock", "disk free", "/dev/shm", "storage write / read", "token"
    )
    for node in nodes:
        rates = node.storage_error or f"{node.write_rate / 1e6:,.0f} / {node.read_rate / 1e6:,.0f} MB/s"
        clock, token = f"{node.clock_s:+.2f} s", "on" if node.token else "off"
        sizes = (f"{node.disk_free / 1e9:,.0f} GB", f"{node.shared_memory / 1e9:,.1f} GB")
        versions = (node.versions.get("ray", "none"), node.versions.get("torch", "none"))
        devices = ", ".join(f"{number:g} {kind}" for kind, number in node.devices.items()) or "none"
        table.add_row(node.name, node.address, devices, *versions, clock, *sizes, rates, token)
    console.print(table)


def _findings(console: Console, findings: Sequence[Finding]) -> None:
    table = Table("method", "gradient of", "workers", "ratio", "error", "", title="beside one process")
    for one in findings:
        verdict = "exact" if one.exact else f"[bold red]over {one.tolerance:g}[/]"
        table.add_row(one.method, one.part, str(one.workers), f"{one.ratio:.9f}", f"{one.error:.1e}", verdict)
    console.print(table)


def _complaints(console: Console, complaints: Sequence[Complaint]) -> None:
    for one in complaints:
        colour = "red" if one.grave else "yellow"
        text = f"[bold {colour}]{escape(one.where)}[/] {escape(one.what)}: {escape(one.mend)}"
        console.print(text, highlight=False, soft_wrap=True)
    if not complaints:
        console.print("nothing is wrong", style="green")


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
