"""Benchmark of a store of 512,000 images of 96 px: building, opening at any step, training, and the sample order.

    python -m benchmarks.large_store --source cifar10-train.tar     # 20 minutes, 20 GB; writes into docs/performance.md

The images are mosaics of the source's (see ``mosaics.py``), packed as JPEG files in tars. The large store is compared
with a small one, which is built from the first tenth of the tars. Building, opening and training are each measured in a
process of their own.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import page
from benchmarks.mosaics import write_shards
from benchmarks.processes import Memory, in_fresh_process
from ssl_dist.data import permutation
from ssl_dist.store import ImageStore, build
from ssl_dist.store.schema import MANIFEST

FIRST_STEPS = (0, 1_000_000)
OPEN_BATCH, TRAIN_BATCH = 512, 256
BILLION = 10**9
Record = dict[str, Any]


def main(
    source: Annotated[Path, typer.Option(help="Images of about 32 px, in any form that a store is built from.")],
    images: Annotated[int, typer.Option(min=10, help="Images of the large store.")] = 512_000,
    steps: Annotated[int, typer.Option(min=1, help=f"Training steps of {TRAIN_BATCH} images.")] = 200,
    repeats: Annotated[int, typer.Option(min=1, help="Times the store is opened at each step.")] = 7,
    folder: Annotated[Path | None, typer.Option(help="Folder that keeps the stores for the next run.")] = None,
    docs: Annotated[Path, typer.Option(help="Folder of performance.md.")] = page.DOCS,
) -> None:
    """Measure, print JSON lines, and write the section of performance.md."""
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        records = _say(_build(source, place, images))
        records += _say(_open(place / "large", repeats))
        records += _say(_train({name: place / name for name in ("small", "large")}, steps))
        records += _say(_order({"small": images // 10, "large": images, "10^9": BILLION}))
    page.write_section("A large store", _text(records, images), docs)


def _say(records: Iterator[Record]) -> list[Record]:
    """Print each record as soon as it is measured; return them all."""
    said = []
    for record in records:
        print(json.dumps(record), flush=True)
        said.append(record)
    return said


def _bytes(memory: Memory) -> Record:
    return {f"peak_{name}_bytes": size for name, size in memory._asdict().items()}


def _build(source: Path, place: Path, images: int) -> Iterator[Record]:
    """Build the two stores, unless they are there, and yield the builds' figures, which a file beside them keeps.

    The tars are removed after the builds.
    """
    note = place / "build.json"
    if not ((place / "large" / MANIFEST).exists() and note.exists()):
        packed, workers = place / "tars", os.cpu_count() or 1
        place.mkdir(parents=True, exist_ok=True)
        in_fresh_process(write_shards, source, packed, images, workers)
        tars = sorted(packed.glob("*.tar"))
        few = f"{packed}/{{000..{max(1, len(tars) // 10) - 1:03d}}}.tar"
        lines = []
        for name, pattern in (("small", few), ("large", f"{packed}/*.tar")):
            call = in_fresh_process(_build_one, pattern, place / name)
            rows, seconds = call.result
            lines.append(
                {"build": name, "images": rows, "seconds": seconds, "images_per_s": rows / seconds, "workers": workers}
                | {"source_bytes": sum(tar.stat().st_size for tar in tars) if name == "large" else None}
                | _bytes(call.peak)
            )
        note.write_text(json.dumps(lines))
        shutil.rmtree(packed)
    yield from json.loads(note.read_text())


def _build_one(pattern: str, store: Path) -> tuple[int, float]:
    began = time.perf_counter()
    return build(pattern, store).rows, time.perf_counter() - began


def _open(store: Path, repeats: int) -> Iterator[Record]:
    """Measure the time from opening the store to the first batch of a step; the steps take turns."""
    for verify in ("lazy", "off"):
        seconds: dict[int, list[float]] = {step: [] for step in FIRST_STEPS}
        for repeat in range(repeats + 1):
            for step in FIRST_STEPS if repeat % 2 else FIRST_STEPS[::-1]:
                took = in_fresh_process(_open_at, store, step, verify).result
                if repeat:  # the first reads the manifest and the libraries into the page cache
                    seconds[step].append(took)
        for step, times in seconds.items():
            yield {"open_at_step": step, "verify": verify, "seconds": statistics.median(times), "all": times}


def _open_at(store: Path, step: int, verify: Any) -> float:
    began = time.perf_counter()
    images = ImageStore(store, verify=verify)
    ids, _ = permutation.stream(0, step * OPEN_BATCH, (step + 1) * OPEN_BATCH, len(images))
    images.gather(ids)
    return time.perf_counter() - began


def _train(stores: dict[str, Path], steps: int) -> Iterator[Record]:
    """Measure the loop of ``pretrain`` without the network: a thread fetches batches ahead, the loop makes views."""
    for name, store in stores.items():
        call = in_fresh_process(_train_on, store, steps)
        yield {"train_on": name, "images_per_s": steps * TRAIN_BATCH / call.result} | _bytes(call.peak)


def _train_on(store: Path, steps: int) -> float:
    import torch  # not at the top: the writers of ``build`` import this module, and their memory is measured

    from ssl_dist.collectives import World
    from ssl_dist.config import RunConfig
    from ssl_dist.data import SamplePlan
    from ssl_dist.data.batches import Batches

    torch.set_num_threads(1)
    overrides = {"data.store": str(store), "augment.recipe": "simclr"}
    config = RunConfig.load("simclr-cifar10", overrides | {"batch": {"size": TRAIN_BATCH, "micro": TRAIN_BATCH}})
    began = time.perf_counter()
    for batch in Batches(SamplePlan(config, ImageStore(store)), World(), 0, steps):
        batch.views(0, torch.device("cpu"))
    return time.perf_counter() - began


def _order(sizes: dict[str, int]) -> Iterator[Record]:
    """Measure drawing one batch's ids at the start and the end of an epoch, and at a late step of the stream."""
    for name, size in sizes.items():
        batch, far = min(OPEN_BATCH, size), FIRST_STEPS[1] * OPEN_BATCH
        calls: dict[str, Callable[[], Any]] = {
            "start": partial(permutation.sample_ids, 0, 3, 0, batch, size),
            "end": partial(permutation.sample_ids, 0, 3, size - batch, size, size),
            f"step {FIRST_STEPS[1]:,}": partial(permutation.stream, 0, far, far + OPEN_BATCH, size),
        }
        for where, call in calls.items():
            times = []
            for _ in range(50):
                began = time.perf_counter()
                call()
                times.append(time.perf_counter() - began)
            tracemalloc.start()
            call()
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            yield {
                "order_of": name,
                "ids": size,
                "at": where,
                "seconds": statistics.median(times),
                "peak_bytes": peak,
            }


def _text(records: list[Record], images: int) -> str:
    def memory(one: Record) -> list[str]:
        return [f"{one[f'peak_{name}_bytes'] / 1e6:,.0f}" for name in Memory._fields]

    built = [one for one in records if "build" in one]
    opened = [one for one in records if "open_at_step" in one]
    trained = {one["train_on"]: one for one in records if "train_on" in one}
    ordered = [one for one in records if "order_of" in one]
    ratio = {key: trained["large"][key] / trained["small"][key] for key in trained["large"] if key.endswith("_bytes")}
    header = ["RSS, MB", "PSS, MB", "anonymous, MB"]
    opening = {(one["verify"], one["open_at_step"]): one["seconds"] for one in opened}
    rows_open = [
        [
            verify,
            *(f"{opening[verify, step] * 1e3:,.0f}" for step in FIRST_STEPS),
            f"{opening[verify, FIRST_STEPS[1]] / opening[verify, FIRST_STEPS[0]]:.2f}",
        ]
        for verify in ("lazy", "off")
    ]
    rows_built = [[one["build"], f"{one['images']:,}", f"{one['images_per_s']:,.0f}", *memory(one)] for one in built]
    rows_train = [[f"{name}, {one['images_per_s']:,.0f} images/s", *memory(one)] for name, one in trained.items()] + [
        ["large in units of small", *(f"{ratio[f'peak_{name}_bytes']:.2f}" for name in Memory._fields)]
    ]
    rows_order = [
        [f"{one['ids']:,}", one["at"], f"{one['seconds'] * 1e6:,.0f}", f"{one['peak_bytes'] / 1e3:,.0f}"]
        for one in ordered
    ]
    return f"""
`python -m benchmarks.large_store`: {images:,} mosaics of 3 x 3 real images of 32 px, drawn and flipped at random, as
JPEG files in tars; the small store has the first tenth. RSS is the sum over the process tree, so it counts a page twice
that two processes share; PSS counts it once; the anonymous part excludes the page cache of mapped files.
{page.machine()}

Building from the tars:

{page.table(["", "images", "images/s", *header], rows_built)}

Milliseconds from opening the large store to the first {OPEN_BATCH} images of a step, in a fresh process:

{page.table(["verify", *(f"step {step:,}" for step in FIRST_STEPS), "ratio"], rows_open)}

Peak memory of a loop over batches of {TRAIN_BATCH} that a thread fetches ahead, with their two SimCLR views:

{page.table(["", *header], rows_train)}

The ids of one batch of {OPEN_BATCH}:

{page.table(["samples", "at", "microseconds", "peak kB"], rows_order)}
"""


if __name__ == "__main__":
    typer.run(main)
