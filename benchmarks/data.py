"""Benchmark of the data path beside well-known loaders: random rows, two-view batches, first batch, memory.

    python -m benchmarks.data --source cifar10-train.tar      # about six minutes; writes into docs/performance.md

Every loader reads the same images in its own format, in a process of its own with one core and one thread; repeats take
turns. torch's DataLoader works without worker processes, because they cost CPU time on top.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import numpy as np
import typer
from PIL import Image

from benchmarks import page
from benchmarks.contestant import CONTESTANTS, OURS
from benchmarks.data_report import draw, show, text
from benchmarks.loaders import ROWS, jpeg_path
from benchmarks.processes import Memory, Peak, memory_of
from ssl_dist.data.permutation import sample_ids
from ssl_dist.store import ImageStore, build

JPEG_QUALITY = 90
_FOR_MEMORY = ("none", OURS, "torchvision")  # views to measure memory with; all other loaders can use torchvision's
Record = dict[str, Any]


def main(
    source: Annotated[Path, typer.Option(help="Real images, in any form that a store is built from.")],
    images: Annotated[int, typer.Option(min=256, help="Number of images.")] = 16_384,
    sizes: Annotated[list[int], typer.Option(help="Sides of the resized images, px.")] = [96, 32],  # noqa: B006
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    seconds: Annotated[float, typer.Option(help="Least time of a repeat, s.")] = 1.0,
    python: Annotated[list[str], typer.Option(help="NAME=PATH: another interpreter for a contestant.")] = [],  # noqa: B006
    docs: Annotated[Path, typer.Option(help="Folder of performance.md and the plot.")] = page.DOCS,
) -> None:
    """Measure each size, print JSON lines, and write the section of performance.md."""
    interpreters = dict(one.split("=", 1) for one in python)
    records = []
    for size_px in sizes:
        with tempfile.TemporaryDirectory() as folder:
            _prepare(source, Path(folder), images, size_px)
            for record in _measure(Path(folder), interpreters, repeats, seconds):
                records.append({"px": size_px, **record})
                print(json.dumps(records[-1]), flush=True)
    show(records)
    draw(records, docs / "data.png")
    page.write_section("The data path", text(records, images, repeats), docs)


def _prepare(source: Path, folder: Path, images: int, size_px: int) -> None:
    """Write what every contestant starts from: JPEG files in class folders, and their pixels in one array."""
    build(source, folder / "all", size_px=size_px)
    store = ImageStore(folder / "all", verify="off")
    ids = sample_ids(0, 0, 0, min(images, len(store)), len(store))
    decoded = np.empty((len(ids), size_px, size_px, 3), dtype=np.uint8)
    for number, pixels in enumerate(store.gather(ids)):
        path = jpeg_path(folder, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=JPEG_QUALITY)
        decoded[number] = np.asarray(Image.open(path))
    np.save(folder / "pixels.npy", decoded)


def _measure(folder: Path, interpreters: dict[str, str], repeats: int, seconds: float) -> Iterator[Record]:
    """Yield a record of each contestant that is not installed, then each measure of each of the others."""
    entered = [
        _Contestant(name, encoding, folder, interpreters.get(name, sys.executable))
        for name, kind in CONTESTANTS.items()
        for encoding in kind.encodings
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool, contextlib.ExitStack() as stack:
        for one in entered:
            stack.enter_context(one)
        missing = list(pool.map(lambda one: one.ask("write").get("missing"), entered))
        yield from (one.label | {"missing": module} for one, module in zip(entered, missing, strict=True) if module)
        there = [one for one, module in zip(entered, missing, strict=True) if not module]
        list(pool.map(_Contestant.load, there))
        readers = [one for one in there if "rows" in one.kind.measures and one.is_raw]
        for batch in ROWS:
            yield from _turns("rows", [(one, {"batch": batch, "seconds": seconds}) for one in readers], repeats)
        loaders = [one for one in there if "batches" in one.kind.measures]
        yield from _turns("first", [(one, {}) for one in loaders], repeats)
        yield from _batches(loaders, ("none",), repeats, seconds)
        for views in ("torchvision", "kornia", "lightly"):
            yield from _batches(loaders, (OURS, views), repeats, seconds)
        yield from (one.label | {"measure": "memory"} | one.extra_memory() for one in loaders)


def _batches(loaders: list[_Contestant], kinds: tuple[str, ...], repeats: int, seconds: float) -> Iterator[Record]:
    """Measure batches with each of these kinds of views, by every loader that can make them."""
    asked = [(one, {"views": views, "seconds": seconds}) for one in loaders for views in kinds if views in one.views]
    return _turns("batches", asked, repeats)


def _turns(what: str, asked: list[tuple[_Contestant, Record]], repeats: int) -> Iterator[Record]:
    """Send each contestant its command ``what`` in turn, ``repeats`` times; yield the medians of its answers."""
    found: list[list[Record]] = [[] for _ in asked]
    for _ in range(repeats):
        for (one, how), answers in zip(asked, found, strict=True):
            answers.append(one.ask(what, **how))
    for (one, how), answers in zip(asked, found, strict=True):
        medians = {key: statistics.median(answer[key] for answer in answers) for key in answers[0]}
        yield one.label | {"measure": what} | how | medians


class _Contestant:
    """A process of ``benchmarks.contestant``, which lives as long as the ``with`` block.

    Attributes:
        label: name and encoding.
        views: the kinds of views it can make, exact once it is loaded; "none" stands for the pixels alone.
    """

    def __init__(self, name: str, encoding: str, folder: Path, interpreter: str) -> None:
        self.label = {"contestant": name, "encoding": encoding}
        self.kind, self.is_raw = CONTESTANTS[name], encoding == "raw"
        self.views: tuple[str, ...] = ("none", *self.kind.views)
        self._command = [interpreter, "-m", "benchmarks.contestant", name, encoding, str(folder)]

    def __enter__(self) -> Self:
        here = Path(__file__).parent.parent
        threads = dict.fromkeys(("OMP_NUM_THREADS", "LANCE_CPU_THREADS", "LANCE_IO_THREADS"), "1")
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **threads, "PYTHONPATH": str(here)},
            cwd=here,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin
        assert self._process.stdout
        if kind:
            self._process.kill()
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def load(self) -> None:
        """Let the process import what it needs; the memory that it has then is its idle memory."""
        views = self.views if "batches" in self.kind.measures else ()
        self.views = tuple(self.ask("load", views=views)["views"])
        self._idle = self._peak = memory_of(self._process.pid)

    def ask(self, what: str, **how: Any) -> Record:
        """Send the command ``what`` with its arguments and return the answer."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"do": what, **how}) + "\n")
        self._process.stdin.flush()
        if how.get("views") in _FOR_MEMORY:
            with Peak(self._process.pid) as peak:
                answer = self._process.stdout.readline()
            self._peak |= peak.memory
        else:
            answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.label} ended with code {self._process.wait()} when asked for {what} {how}")
        found: Record = json.loads(answer)
        return found

    def extra_memory(self) -> Record:
        """Return how far the peak memory, over batches of pixels and of views by one library, exceeds the idle one."""
        pairs = zip(Memory._fields, self._peak, self._idle, strict=True)
        return {f"extra_{name}_bytes": peak - idle for name, peak, idle in pairs}


if __name__ == "__main__":
    typer.run(main)
