"""What a store's checks cost: an epoch of ``gather`` with ``verify="lazy"`` beside one with "off".

    python -m benchmarks.checks --source cifar10-train.tar      # about a minute; writes into docs/performance.md

A record batch is checked when it is first touched, so all of it falls into a process' first epoch. That is measured
with the files in the system's page cache, and with files that it has dropped, so that they come from the disk.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks import page
from benchmarks.loaders import BATCH
from ssl_dist.order import sample_ids
from ssl_dist.store import ImageStore, build
from ssl_dist.store.read import Verify

Record = dict[str, Any]
KINDS: tuple[Verify, Verify] = ("off", "lazy")


def main(
    source: Annotated[Path, typer.Option(help="Real images: anything that a store is built from.")],
    sizes: Annotated[list[int], typer.Option(help="Sides they are resized to, px.")] = [96, 32],  # noqa: B006
    repeats: Annotated[int, typer.Option(min=1)] = 7,
    docs: Annotated[Path, typer.Option(help="Folder of performance.md.")] = page.DOCS,
) -> None:
    """Measure, print, write."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    records = []
    for size_px in sizes:
        with tempfile.TemporaryDirectory() as folder:
            build(source, Path(folder) / "store", size_px=size_px)
            records.append({"px": size_px, **measure(Path(folder) / "store", repeats)})
            print(json.dumps(records[-1]), flush=True)
    page.write_section("Checks", _text(records, repeats), docs)


def measure(store: Path, repeats: int) -> Record:
    """Medians over repeats that take turns, seconds of an epoch, WHERE_WHEN_VERIFY: "disk" or "cache", where the first
    epoch reads from; "first" or "later"; "off" or "lazy". And ``images``, how many an epoch has."""
    found: dict[str, list[float]] = {}
    for repeat in range(repeats):
        for where in ("disk", "cache"):
            for verify in KINDS:
                if where == "disk":
                    _drop(store)
                for when, seconds in zip(("first", "later"), _epochs(store, verify, 2 * repeat), strict=True):
                    found.setdefault(f"{where}_{when}_{verify}", []).append(seconds)
    return {"images": len(ImageStore(store)), **{name: statistics.median(each) for name, each in found.items()}}


def _epochs(path: Path, verify: Verify, epoch: int) -> Iterator[float]:
    """Seconds to read each image once, in training's order, in two epochs of a store that has just been opened."""
    store = ImageStore(path, verify=verify)
    for number in (epoch, epoch + 1):
        ids = sample_ids(0, number, 0, len(store), len(store))
        began = time.perf_counter()
        for some in np.split(ids, range(BATCH, len(ids), BATCH)):
            store.gather(some)
        yield time.perf_counter() - began


def _drop(store: Path) -> None:
    """Its files from the page cache; nobody must have them mapped."""
    for path in store.glob("*.arrow"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _text(records: list[Record], repeats: int) -> str:
    kinds = [(where, when) for where, when in (("disk", "first"), ("cache", "first"), ("cache", "later"))]
    rows = []
    for one in records:
        cost = {where: one[f"{where}_first_lazy"] - one[f"{where}_first_off"] for where in ("disk", "cache")}
        ten = one["cache_first_off"] + 9 * one["cache_later_off"]
        rows.append(
            [
                f"{one['px']} px",
                *(
                    f"{one['images'] / one[f'{where}_{when}_{verify}']:,.0f}"
                    for where, when in kinds
                    for verify in KINDS
                ),
                f"{cost['disk'] / one['disk_first_off']:+.0%}",
                f"{cost['cache'] / one['cache_first_off']:+.0%}",
                f"{cost['cache'] / ten:+.1%}",
            ]
        )
    header = [f"{epoch}, {verify}" for epoch in ("disk", "page cache", "second epoch") for verify in KINDS]
    return f"""
`python -m benchmarks.checks`: images/s of `gather`, {BATCH} a call, each image once an epoch, with `verify="lazy"`
(each record batch is checked when it is first touched) and "off", in the first epoch of a store that has just been
opened, from the disk or from the page cache, and in the second; one core, medians of {repeats} repeats that take turns.
The last columns: how much longer the first epoch takes with checks than without, and the first ten from the page cache.
{page.machine()}

{page.table(["", *header, "disk", "page cache", "ten epochs"], rows)}
"""


if __name__ == "__main__":
    typer.run(main)
