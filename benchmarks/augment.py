"""SimCLR's two views, ours beside the peers': views a CPU-second, one thread.

python -m benchmarks.augment            # about a minute; prints JSON lines, writes into docs/performance.md
"""

from __future__ import annotations

import json
import statistics
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks import page
from benchmarks.augmenters import CONTENDERS, Task, Views

TASKS = [Task(256, 32, 0.5, blur=False), Task(128, 96, 1.0, blur=True)]
_KEPT_BYTES = 31 << 20
Record = dict[str, Any]


def main(
    images: Annotated[int, typer.Option(min=1, help="At most, of a call that makes a batch at once.")] = 256,
    single: Annotated[int, typer.Option(min=1, help="Of a call that makes one image at a time.")] = 16,
    repeats: Annotated[int, typer.Option(min=1)] = 31,
    docs: Annotated[Path, typer.Option(help="Folder of performance.md and the plot.")] = page.DOCS,
) -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    keep_freed_memory()
    records = [one for task in TASKS for one in _measure(task, images, single, repeats)]
    for record in records:
        print(json.dumps(record), flush=True)
    _draw(records, docs / "augment.png")
    page.write_section("Augmentation", _text(records, repeats), docs)


def keep_freed_memory() -> None:
    """glibc gives freed memory back to the kernel unless larger blocks were freed before, as any training step does;
    getting it again, page by page, would be most of the time of whoever works on batches."""
    torch.empty(_KEPT_BYTES, dtype=torch.uint8)


def _measure(task: Task, images: int, single: int, repeats: int) -> list[Record]:
    """Of each contender, the median of calls that take turns."""
    images = min(images, task.images)
    pixels = np.random.default_rng(0).integers(0, 256, (images, task.size, task.size, 3), dtype=np.uint8)
    makers: dict[str, tuple[Views, int]] = {}
    for name, contender in CONTENDERS.items():
        count = images if contender.batched else min(single, images)
        makers[name] = (contender.start(task, pixels[:count]), 2 * count)
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers' own, of what they have deprecated
        for repeat in range(repeats + 1):
            for name, (make, count) in makers.items():
                began = time.process_time()
                make()
                if repeat:  # the first warms up
                    seconds[name].append((time.process_time() - began) / count)
    return [
        {"augmenter": name, "size_px": task.size, "blur": task.blur, "views_per_cpu_s": 1 / statistics.median(each)}
        for name, each in seconds.items()
    ]


def _text(records: list[Record], repeats: int) -> str:
    found = {(one["augmenter"], one["size_px"]): one["views_per_cpu_s"] for one in records}
    ours = "ours, float32"

    def cell(name: str, size: int) -> str:
        return f"{found[name, size]:,.0f} ({found[ours, size] / found[name, size]:.1f})"

    rows = [[name, *(cell(name, task.size) for task in TASKS)] for name in CONTENDERS]
    header = ["", *(f"{task.size} px, {'with' if task.blur else 'no'} blur" for task in TASKS)]
    return f"""
`python -m benchmarks.augment`: SimCLR's two views of random images, one thread; medians of {repeats} calls that take
turns. What makes a batch at once has 256 images of 32 px or 128 of 96 px a call. Jitter of strength 0.5 at 32 px, 1
at 96 px. Each has the images in the form it takes best: torchvision uint8 tensors, lightly decoded PIL images, kornia a
float32 batch, ours uint8. What differs between them is in `benchmarks/augmenters.py`. Before, 31 MB are allocated and
freed, so that glibc keeps freed memory as it does in training; the views of 256 images of 96 px (57 MB of float32) are
above what it keeps and would cost more. {page.machine()}

![Views a CPU-second](augment.png)

Views a CPU-second (how many times as many ours makes in float32):

{page.table(header, rows)}
"""


def _draw(records: list[Record], picture: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(TASKS), figsize=(9, 2.6), layout="constrained", sharey=True)
    for axis, task in zip(axes, TASKS, strict=True):
        mine = [one for one in records if one["size_px"] == task.size][::-1]
        bars = axis.barh([one["augmenter"] for one in mine], [one["views_per_cpu_s"] for one in mine])
        axis.bar_label(bars, fmt="{:,.0f}", padding=3)
        axis.set(xlabel="views a CPU-second", title=f"{task.size} px, {'with' if task.blur else 'no'} blur")
        axis.margins(x=0.2)
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    typer.run(main)
