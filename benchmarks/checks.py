"""Benchmark of a store's checks: an epoch of ``gather`` with ``verify="lazy"`` beside one with "off", and NumPy.

    python -m benchmarks.checks --source cifar10-train.tar      # about three minutes; writes into docs/performance.md

A record batch is checked when it is first touched, so a process pays for all checks in its first epoch. That epoch is
measured with the files in the system's page cache and after they were dropped from it, so that it reads the disk.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks import page
from benchmarks.loaders import BATCH
from ssl_dist.data.permutation import sample_ids
from ssl_dist.store import ImageStore, build
from ssl_dist.store.image_store import MAX_MAPPED_BYTES, Verify

Record = dict[str, Any]
KINDS: tuple[Verify, Verify] = ("off", "lazy")


def main(
    source: Annotated[Path, typer.Option(help="Real images, in any form that a store is built from.")],
    sizes: Annotated[list[int], typer.Option(help="Sides of the resized images, px.")] = [96, 64, 32],  # noqa: B006
    repeats: Annotated[int, typer.Option(min=1)] = 7,
    folder: Annotated[Path | None, typer.Option(help="Folder on a disk; the system's temporary one if none.")] = None,
    docs: Annotated[Path, typer.Option(help="Folder of performance.md.")] = page.DOCS,
) -> None:
    """Measure each size, print JSON lines, and write the section of performance.md."""
    allowed = os.sched_getaffinity(0)
    records = []
    for size_px in sizes:
        with tempfile.TemporaryDirectory(dir=folder) as made:
            build(source, Path(made) / "store", size_px=size_px)
            os.sched_setaffinity(0, {max(allowed)})
            records.append({"px": size_px, **measure(Path(made) / "store", repeats)})
            os.sched_setaffinity(0, allowed)
            print(json.dumps(records[-1]), flush=True)
    page.write_section("Checks", _text(records, repeats), docs)


def measure(store: Path, repeats: int) -> Record:
    """Measure epochs of ``gather``; the kinds of epoch take turns.

    Returns:
        WHERE_WHEN_VERIFY_s: median seconds of an epoch. WHERE is "disk" or "cache", from which the first epoch reads;
        WHEN is "first" or "later"; VERIFY is "off" or "lazy".
        numpy_s: median seconds of an epoch in which NumPy indexes the same images in memory.
        images, bytes: size of the store.
    """
    found: dict[str, list[float]] = {}
    for repeat in range(repeats):
        for where in ("disk", "cache"):
            for verify in KINDS if repeat % 2 else KINDS[::-1]:
                if where == "disk":
                    _drop(store)
                opened = ImageStore(store, verify=verify)
                for when, seconds in zip(("first", "later"), _epochs(opened.gather, len(opened), repeat), strict=True):
                    found.setdefault(f"{where}_{when}_{verify}_s", []).append(seconds)
                del opened  # the page cache keeps files that are mapped
    opened = ImageStore(store)
    images = opened.gather(np.arange(len(opened)))
    found["numpy_s"] = [list(_epochs(lambda ids: images[ids], len(images), repeat))[1] for repeat in range(repeats)]
    about = {"images": len(images), "bytes": opened.manifest.bytes}
    return about | {name: statistics.median(each) for name, each in found.items()}


def _epochs(read: Callable[[np.ndarray], np.ndarray], images: int, seed: int) -> Iterator[float]:
    """Yield the seconds of two epochs; each reads every image once, in training's order."""
    for epoch in range(2):
        ids = sample_ids(seed, epoch, 0, images, images)
        began = time.perf_counter()
        for some in np.split(ids, range(BATCH, images, BATCH)):
            read(some)
        yield time.perf_counter() - began


def _drop(store: Path) -> None:
    """Drop the store's files from the page cache; no process may have them mapped."""
    for path in store.glob("*.arrow"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _text(records: list[Record], repeats: int) -> str:
    kinds = ("disk_first", "cache_first", "cache_later")
    rows = []
    for one in records:
        cost = {where: one[f"{where}_first_lazy_s"] - one[f"{where}_first_off_s"] for where in ("disk", "cache")}
        ten = one["cache_first_off_s"] + 9 * one["cache_later_off_s"]
        times = [one[f"{kind}_{verify}_s"] for kind in kinds for verify in KINDS]
        kind = "mapped" if one["bytes"] <= MAX_MAPPED_BYTES else "read"
        rows.append(
            [
                f"{one['px']} px, {one['bytes'] / 1e6:,.0f} MB, {kind}",
                *(f"{one['images'] / seconds:,.0f}" for seconds in (*times, one["numpy_s"])),
                f"{cost['disk'] / one['disk_first_off_s']:+.0%}",
                f"{cost['cache'] / one['cache_first_off_s']:+.0%}",
                f"{cost['cache'] / ten:+.1%}",
            ]
        )
    header = [f"{epoch}, {verify}" for epoch in ("disk", "page cache", "second epoch") for verify in KINDS]
    return f"""
`python -m benchmarks.checks`: images/s of `gather`, {BATCH} a call, each image once an epoch, with `verify="lazy"`
(each record batch is checked when it is first touched) and "off". The first epoch after the store is opened reads from
the disk or from the page cache; the second follows it. NumPy indexes the same images in memory. Stores of up to 1 GiB
are mapped, larger ones read; on the first touch, a record batch of a larger one is read as a whole for its metadata,
checked or not. One core, medians of {repeats} repeats that take turns. The last three columns tell how much longer the
first epoch takes with checks than without (from the disk, from the page cache), and the first ten epochs from the page
cache. {page.machine()}

{page.table(["", *header, "NumPy", "checks, disk", "page cache", "ten epochs"], rows)}
"""


if __name__ == "__main__":
    typer.run(main)
