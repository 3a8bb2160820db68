"""Benchmark of SimCLR's two views, ours beside other libraries': views a CPU-second, on one thread.

python -m benchmarks.augment            # about a minute; prints JSON lines, writes into docs/performance.md
"""

from __future__ import annotations

import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from PIL import Image

from benchmarks import page, transforms
from ssl_dist import augment

Record = dict[str, Any]
Views = Callable[[], Any]  # makes two views of every image


class Task(NamedTuple):
    """One measurement: views of ``size`` x ``size`` px, made from images of the same size, ``images`` in a batch."""

    images: int
    size: int

    @property
    def blur(self) -> bool:
        return self.size > transforms.SMALL_PX

    def __str__(self) -> str:
        return f"{self.size} px, {'with' if self.blur else 'no'} blur"


TASKS = [Task(256, 32), Task(256, 96)]


class Contender(NamedTuple):
    """A library that makes views.

    Attributes:
        start: images, uint8 [N, S, S, 3] -> a function that makes two views of each of them.
        batched: the library makes the views of a whole batch at once, not of one image at a time.
    """

    start: Callable[[np.ndarray], Views]
    batched: bool


def _ours(images: np.ndarray) -> Views:
    pixels, ids, policy = torch.from_numpy(images), torch.arange(len(images)), transforms.policy_name(images.shape[1])
    return lambda: augment.views(pixels, ids, seed=0, epoch=0, recipe=policy)


def _kornia(images: np.ndarray) -> Views:
    make, pixels = transforms.kornia(images.shape[1]), torch.from_numpy(images)
    return lambda: make(pixels)


def _per_image(name: str) -> Callable[[np.ndarray], Views]:
    """Return a ``start`` that makes the views of one PIL image at a time, and stacks them as a DataLoader does."""

    def start(images: np.ndarray) -> Views:
        make, pictures = transforms.PER_IMAGE[name](images.shape[1]), [Image.fromarray(image) for image in images]
        return lambda: [torch.stack(view) for view in zip(*map(make, pictures), strict=True)]

    return start


CONTENDERS: dict[str, Contender] = {
    "ours": Contender(_ours, batched=True),
    "kornia": Contender(_kornia, batched=True),
    **{name: Contender(_per_image(name), batched=False) for name in transforms.PER_IMAGE},
}


def main(
    images: Annotated[int, typer.Option(min=1, help="Most images in a call that makes a batch at once.")] = 256,
    single: Annotated[int, typer.Option(min=1, help="Images in a call that takes one at a time.")] = 16,
    repeats: Annotated[int, typer.Option(min=1)] = 31,
    docs: Annotated[Path, typer.Option(help="Folder of performance.md and the plot.")] = page.DOCS,
) -> None:
    """Measure the libraries, print JSON lines, and write the section of performance.md."""
    torch.set_num_threads(1)
    there = transforms.installed(list(CONTENDERS))
    records: list[Record] = [{"augmenter": name, "missing": name} for name in CONTENDERS if name not in there]
    tasks = [task._replace(images=min(images, task.images)) for task in TASKS]
    for task in tasks:
        records += _measure(task, there, single, repeats)
    for record in records:
        print(json.dumps(record), flush=True)
    _draw(records, docs / "augment.png")
    page.write_section("Augmentation", _text(records, tasks, single, repeats), docs)


def _measure(task: Task, names: list[str], single: int, repeats: int) -> list[Record]:
    """Return a record of each library: the median of its calls; the libraries take turns."""
    pixels = np.random.default_rng(0).integers(0, 256, (task.images, task.size, task.size, 3), dtype=np.uint8)
    makers: dict[str, tuple[Views, int]] = {}
    for name in names:
        count = task.images if CONTENDERS[name].batched else min(single, task.images)
        makers[name] = (CONTENDERS[name].start(pixels[:count]), 2 * count)
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries call deprecated functions of their own
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


def _text(records: list[Record], tasks: list[Task], single: int, repeats: int) -> str:
    missing = [one["missing"] for one in records if "missing" in one]
    found = {(one["augmenter"], one["size_px"]): one["views_per_cpu_s"] for one in records if "missing" not in one}

    def cell(name: str, size: int) -> str:
        return f"{found[name, size]:,.0f} ({found['ours', size] / found[name, size]:.1f})"

    names = [name for name in CONTENDERS if name not in missing]
    rows = [[name, *(cell(name, task.size) for task in tasks)] for name in names]
    batches = " or ".join(f"{task.images} of {task.size} px" for task in tasks)
    return f"""
`python -m benchmarks.augment`: SimCLR's two views of random images, float32, one thread; medians of {repeats} calls
that take turns. Ours and kornia work on uint8 batches ({batches}); torchvision (its transforms.v2) and lightly on
decoded PIL images, one at a time, {single} a call. The colour jitter's strength is 0.5 up to {transforms.SMALL_PX} px
and 1 above. `benchmarks/transforms.py` names the other differences between them. {page.machine()}

![Views a CPU-second](augment.png)

Views a CPU-second (ours in units of it):

{page.table(["", *map(str, tasks)], rows)}

Not installed in this run: {", ".join(missing) or "none"}.
"""


def _draw(records: list[Record], picture: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(TASKS), figsize=(9, 2.6), layout="constrained", sharey=True)
    for axis, task in zip(axes, TASKS, strict=True):
        mine = [one for one in records if one.get("size_px") == task.size][::-1]
        bars = axis.barh([one["augmenter"] for one in mine], [one["views_per_cpu_s"] for one in mine])
        axis.bar_label(bars, fmt="{:,.0f}", padding=3)
        axis.set(xlabel="views a CPU-second", title=str(task))
        axis.margins(x=0.2)
        axis.locator_params(axis="x", nbins=5)  # more labels would touch each other
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    typer.run(main)
