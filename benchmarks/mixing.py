"""Benchmark of how well batches are mixed: the sample orders of ssl_dist beside shuffle buffers.

The source lies in runs: images of one class folder, video or scene that follow each other. The measure is the number of
distinct runs in a batch, divided by that of a batch drawn uniformly: 1 for a full permutation, near 0 for neighbours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks import page
from ssl_dist.data import permutation
from ssl_dist.data.windowed_order import WindowedOrder

RUN = 1000  # samples
SHARD = 8192
BUFFERS = (1_000, 10_000)
Order = Callable[[int], np.ndarray]  # epoch -> the ids of an epoch


def main(
    shards: Annotated[int, typer.Option(help="Shards of 8,192 samples.")] = 64,
    batches: Annotated[list[int], typer.Option(help="Samples of a batch.")] = [256, 4096],  # noqa: B006
    epochs: Annotated[int, typer.Option(help="Epochs to average over.")] = 3,
    docs: Annotated[Path, typer.Option(help="Folder of performance.md.")] = page.DOCS,
) -> None:
    """Measure each order, print JSON lines, and write the section of performance.md."""
    windows = [2**power for power in range(shards.bit_length()) if 2**power <= shards]
    found: dict[str, list[float]] = {}
    for name, permuted in orders(shards, windows).items():
        ids = [permuted(epoch) for epoch in range(epochs)]
        found[name] = [mixing(ids, batch, shards * SHARD) for batch in batches]
        line = {"order": name, "batch": batches, "mixing": [round(one, 4) for one in found[name]]}
        print(json.dumps(line), flush=True)
    _draw(found, windows, batches, docs / "mixing.png")
    header = ["order", *(f"batch of {batch:,}" for batch in batches)]
    text = f"""
`python -m benchmarks.mixing`: {shards * SHARD:,} samples in {shards} shards of {SHARD:,}; each run of {RUN:,}
consecutive samples is of one kind. The figures are the distinct runs in a batch, in units of those in a uniform draw,
averaged over {epochs} epochs. A window is the order of `data.order: shards` with a `data.window` of that many shards.
A shuffle buffer reads the source in its stored order and gives out a random one of the samples that it holds; "of
permuted shards" first permutes the shards, as WebDataset and others do.

![Mixing](mixing.png)

{page.table(header, [[name, *(f"{one:.3f}" for one in values)] for name, values in found.items()])}
"""
    page.write_section("How well batches are mixed", text, docs)


def orders(shards: int, windows: list[int]) -> dict[str, Order]:
    """Return the orders to compare, by name, for a store of ``shards`` shards."""
    count, rows = shards * SHARD, np.full(shards, SHARD)
    found: dict[str, Order] = {"full permutation": lambda epoch: permutation.sample_ids(0, epoch, 0, count, count)}
    for window in reversed(windows):
        made = WindowedOrder(0, rows, window * SHARD)
        found[f"window of {window} shards"] = lambda epoch, made=made: made.sample_ids(epoch, 0, count)  # type: ignore[misc]
    for size in BUFFERS:
        found[f"buffer of {size:,}"] = lambda epoch, size=size: buffered(np.arange(count), size, epoch)  # type: ignore[misc]

    def of_permuted(epoch: int, size: int) -> np.ndarray:
        permuted = permutation.sample_ids(0, epoch, 0, shards, shards)
        return buffered((permuted[:, None] * SHARD + np.arange(SHARD)).ravel(), size, epoch)

    for size in BUFFERS:
        found[f"buffer of {size:,} of permuted shards"] = lambda epoch, size=size: of_permuted(epoch, size)  # type: ignore[misc]
    return found


def buffered(ids: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Return the ids in the order in which a shuffle buffer gives them out.

    The buffer is filled first; from then on, each new id replaces a random one, which is given out.
    """
    random = np.random.default_rng(seed)
    buffer, out = ids[:size].copy(), np.empty_like(ids)
    places = random.integers(0, len(buffer), len(ids) - len(buffer)).tolist()
    for position, (place, new) in enumerate(zip(places, ids[size:].tolist(), strict=True)):
        out[position] = buffer[place]
        buffer[place] = new
    out[len(places) :] = random.permutation(buffer)
    return out


def mixing(epochs: list[np.ndarray], batch: int, num_samples: int) -> float:
    """Return the mean number of distinct runs in a batch, divided by that of a uniform draw."""
    random = np.random.default_rng(0)
    found = np.mean([_distinct(ids) for epoch in epochs for ids in _batches(epoch, batch)])
    drawn = [_distinct(random.choice(num_samples, batch, replace=False)) for _ in range(50)]
    return float(found / np.mean(drawn))


def _batches(ids: np.ndarray, batch: int) -> Iterator[np.ndarray]:
    return (ids[start : start + batch] for start in range(0, len(ids) - batch + 1, batch))


def _distinct(ids: np.ndarray) -> int:
    return len(np.unique(ids // RUN))


def _draw(found: dict[str, list[float]], windows: list[int], batches: list[int], picture: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(batches), figsize=(5 * len(batches), 3.6), squeeze=False, sharey=True)
    for number, (axis, batch) in enumerate(zip(axes[0], batches, strict=True)):
        axis.plot(windows, [found[f"window of {window} shards"][number] for window in windows], "o-", label="window")
        others = {name: values for name, values in found.items() if not name.startswith("window")}
        for place, (name, values) in enumerate(others.items()):
            axis.axhline(values[number], color=f"C{place + 1}", ls="--", label=name)
        axis.set(title=f"batches of {batch:,}", xlabel="shards of a window", xscale="log", ylim=(0, 1.05))
        axis.set_xticks(windows, [str(window) for window in windows])
        axis.minorticks_off()
    axes[0][0].set_ylabel("distinct runs / a uniform draw's")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    typer.run(main)
