"""The report of the doctor as tables on the screen."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from cluster.doctor.checks import Report
from cluster.doctor.complaints import Complaint
from cluster.doctor.nodes import Node
from ssl_dist.commands.console import say
from ssl_dist.training.exactness import Finding


def show_report(console: Console, report: Report) -> None:
    """Print a report."""
    _nodes(console, report.nodes)
    if (link := report.link) and link.workers > 1:
        latency = f"all-reduce of one number {link.latency_s * 1e3:.2f} ms, of 64 MiB {link.rate / 1e6:,.0f} MB/s"
        say(f"{link.workers} workers: {latency}", console)
    if trial := report.dry_run:
        speed = f"{trial.images_per_s:,.0f} images/s, {trial.peak_mb:,.0f} MB in worker 0"
        whole = f"the whole run would take {duration(trial.whole_run_s)}, without probes and checkpoints"
        say(f"dry run: {speed}; {whole}", console)
    if report.findings:
        _findings(console, report.findings)
    _complaints(console, report.complaints)


def _nodes(console: Console, nodes: Sequence[Node]) -> None:
    """Print two lines a node, which fit 80 columns."""
    headings = ("devices", "Ray\ntorch", "clock\ntoken", "GB free\nin shm", "MB/s written\nand read")
    table = Table(Column("node\naddress", no_wrap=True, overflow="fold"), *headings, box=box.SIMPLE)
    for node in nodes:
        devices = "\n".join(f"{number:g} {kind}" for kind, number in node.devices.items()) or "none"
        versions = f"{node.versions.get('ray', 'none')}\n{node.versions.get('torch', 'none')}"
        clock = f"{node.clock_s:+.2f} s\n{'on' if node.token else 'off'}"
        sizes = f"{node.disk_free / 1e9:,.0f}\n{node.shared_memory / 1e9:,.1f}"
        rates = node.storage_error or f"{node.write_rate / 1e6:,.0f}\n{node.read_rate / 1e6:,.0f}"
        table.add_row(*map(Text, (f"{node.name}\n{node.address}", devices, versions, clock, sizes, rates)))
    console.print(table)


def _findings(console: Console, findings: Sequence[Finding]) -> None:
    table = Table("method", "gradient of", "workers", "ratio", "error", "", title="beside one process", box=box.SIMPLE)
    for one in findings:
        verdict = Text("exact") if one.exact else Text(f"over {one.tolerance:g}", style="bold red")
        table.add_row(one.method, one.part, str(one.workers), f"{one.ratio:.9f}", f"{one.error:.1e}", verdict)
    console.print(table)


def _complaints(console: Console, complaints: Sequence[Complaint]) -> None:
    for one in complaints:
        colour = "red" if one.grave else "yellow"
        text = f"[bold {colour}]{escape(one.where)}[/] {escape(one.what)}: {escape(one.mend)}"
        console.print(text, highlight=False, soft_wrap=True)
    if not complaints:
        console.print("nothing is wrong", style="green")


def duration(seconds: float) -> str:
    """Format seconds as hours and minutes, or as minutes and seconds."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
