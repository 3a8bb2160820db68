"""Benchmark of NT-Xent, forward and backward, beside other libraries: time, peak extra memory and bytes sent.

    python -m benchmarks.nt_xent            # minutes; up to 8 GB; prints JSON lines, writes into docs/performance.md

Memory is how much the peak resident size of a fresh process grows over one call (Linux).
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.distributed as dist
import typer
from torch import Tensor

from benchmarks import page
from benchmarks.contenders import LOSSES
from benchmarks.traffic import Traffic

DIM, TEMPERATURE = 128, 0.1
Record = dict[str, Any]


def main(
    rows: Annotated[list[int], typer.Option(help="2N, the rows of the global batch.")] = [  # noqa: B006
        1024,
        2048,
        4096,
        8192,
        16384,
    ],
    workers: Annotated[list[int], typer.Option(help="Worker counts for the bytes sent.")] = [2, 4, 8],  # noqa: B006
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    docs: Annotated[Path, typer.Option(help="Folder of performance.md and the plot.")] = page.DOCS,
) -> None:
    """Measure the losses, print JSON lines, and write the section of performance.md."""
    records: list[Record] = []
    for count in rows:
        records += _say([{**one, "peak_extra_bytes": _peak(one["loss"], count)} for one in _times(count, repeats)])
    sent = [one for count in workers for one in _say(_sent(count))]
    _draw(records, docs / "nt_xent.png")
    page.write_section("NT-Xent, forward + backward", _text(records, sent, repeats), docs)


def _say(records: list[Record]) -> list[Record]:
    for record in records:
        print(json.dumps(record), flush=True)
    return records


def _times(rows: int, repeats: int) -> list[Record]:
    """Return a record of each loss with the median seconds of its calls; the losses take turns."""
    z_a, z_b = _embeddings(rows // 2)
    seconds: dict[str, list[float]] = {name: [] for name in LOSSES}
    values: dict[str, float] = {}
    for repeat in range(repeats + 1):
        for name in LOSSES:
            began = time.perf_counter()
            values[name] = _call(name, z_a, z_b)
            if repeat:  # the first warms up
                seconds[name].append(time.perf_counter() - began)
    return [
        {"loss": name, "rows": rows, "value": values[name], "seconds": statistics.median(seconds[name])}
        for name in LOSSES
    ]


def _embeddings(images: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z_a = torch.randn(images, DIM, generator=generator)
    z_b = z_a + 0.5 * torch.randn(images, DIM, generator=generator)
    return z_a.requires_grad_(), z_b.requires_grad_()


def _call(name: str, z_a: Tensor, z_b: Tensor) -> float:
    loss = LOSSES[name](z_a, z_b, TEMPERATURE)
    torch.autograd.grad(loss, (z_a, z_b))
    return loss.item()


def _peak(name: str, rows: int) -> int:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak_here, name, rows, torch.get_num_threads()).result()


def _peak_here(name: str, rows: int, threads: int) -> int:
    torch.set_num_threads(threads)
    _call(name, *_embeddings(32))  # load the libraries and start their threads first
    z_a, z_b = _embeddings(rows // 2)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    before = peak_resident()
    _call(name, z_a, z_b)
    return peak_resident() - before


def peak_resident() -> int:
    """Return the peak resident bytes of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [peak] = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return peak * 1024


def _sent(world_size: int) -> list[Record]:
    """Return for each loss the bytes that a rank sends, in units of (W - 1) x the bytes of its embeddings."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(world_size, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        jobs = [pool.submit(_sent_here, rank, world_size, folder) for rank in range(world_size)]
        ratios = jobs[0].result()
        for job in jobs:
            job.result()
    return [{"loss": name, "workers": world_size, "sent": ratio} for name, ratio in ratios.items()]


def _sent_here(rank: int, world_size: int, folder: str) -> dict[str, float]:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    ratios = {}
    for name in LOSSES:
        if name != "dense autograd":  # it does not gather
            z_a, z_b = _embeddings(256)
            with Traffic(world_size) as sent:
                _call(name, z_a, z_b)
            ratios[name] = sent.bytes / ((world_size - 1) * 2 * z_a.numel() * z_a.element_size())
    dist.destroy_process_group()
    return ratios


def _exponent(records: list[Record], name: str) -> float:
    """Fit memory ~ rows^p by least squares in logarithms; return p."""
    mine = [one for one in records if one["loss"] == name]
    sizes, peaks = ([one[key] for one in mine] for key in ("rows", "peak_extra_bytes"))
    return float(np.polyfit(np.log(sizes), np.log(peaks), 1)[0])


def _text(records: list[Record], sent: list[Record], repeats: int) -> str:
    sizes = sorted({one["rows"] for one in records})
    found = {(one["loss"], one["rows"]): one for one in records}

    def lines(key: str, show: Callable[[float], str]) -> list[list[str]]:
        return [
            [name, *(f"{show(found[name, n][key])} ({found[name, n][key] / found['ours', n][key]:.1f})" for n in sizes)]
            for name in LOSSES
        ]

    header = [f"2N = {n}" for n in sizes]
    counts = sorted({one["workers"] for one in sent})
    ratios = {(one["loss"], one["workers"]): one["sent"] for one in sent}
    names = [name for name in LOSSES if (name, counts[0]) in ratios]
    traffic = [[name, *(f"{ratios[name, n]:.3f}" for n in counts)] for name in names]
    exponents = ", ".join(f"{name} {_exponent(records, name):.2f}" for name in LOSSES) if len(sizes) > 1 else "-"
    return f"""
`python -m benchmarks.nt_xent`: D = {DIM}, t = {TEMPERATURE}, float32, one process; medians of {repeats} calls
that take turns. "solo-learn" is that library's formula, typed again; "lightly" is the package itself.
{page.machine()}

![Time and memory](nt_xent.png)

Milliseconds (in units of ours):

{page.table(["", *header], lines("seconds", lambda s: f"{1000 * s:,.0f}"))}

Peak extra memory, MB (in units of ours), of one call in a fresh process:

{page.table(["", *header], lines("peak_extra_bytes", lambda b: f"{b / 1e6:,.1f}"))}

Memory grows as a power of 2N, with these exponents: {exponents}.

Bytes sent per rank, forward + backward, in units of (W - 1) x the bytes of its embeddings (256 images a rank). Each
collective that was called counts as many bytes as its ring algorithm sends:

{page.table(["", *(f"W = {n}" for n in counts)], traffic)}
"""


def _draw(records: list[Record], picture: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    panels = [("seconds", 1, "time, s"), ("peak_extra_bytes", 1e6, "peak extra memory, MB")]
    for axis, (key, unit, label) in zip(axes, panels, strict=True):
        for name in LOSSES:
            mine = [one for one in records if one["loss"] == name]
            axis.loglog([one["rows"] for one in mine], [one[key] / unit for one in mine], "o-", label=name, base=2)
        axis.set(xlabel="2N", ylabel=label, yscale="log")
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    typer.run(main)
