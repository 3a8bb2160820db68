"""Benchmark of strategies for the next labels: accuracy with the labels that each asks for, beside random ones.

    python -m benchmarks.label_strategies runs/cifar10 --train stores/cifar10-train --test stores/cifar10-test \\
        --folder strategies --name CIFAR-10                     # half an hour of one core

Each seed holds some training images out, on which accuracies are measured; the others are the pool. A strategy asks for
a budget of labels at once (start 0), or for half of it after another half that was drawn at random (the only way for a
strategy with a probe). Random labels are requested with the same seed, held-out images and first labels, so that
strategies are compared in pairs. Features are embedded once, and rows that are there are not measured again: both lie
in the folder. ``--ship`` writes the table that ``ssl-dist label-request`` recommends from. It has no figure of the test
store; those stand beside in the folder's rows.
"""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer

from benchmarks import page
from ssl_dist.checkpoint import locate
from ssl_dist.evaluate.features import extract, fastest_device, load_method
from ssl_dist.evaluate.knn import knn_accuracy
from ssl_dist.evaluate.labelled import labels_by_name, open_labelled
from ssl_dist.selection.pool import Pool, draw
from ssl_dist.selection.probe import Probe
from ssl_dist.selection.recommended import MEASURED, Measured, gains
from ssl_dist.selection.strategies import STRATEGIES, select

BUDGETS, SEEDS = (10, 50, 100, 1000), 5
_HELD_OUT, _FIRST = 100, 101  # streams of draws
_NEIGHBOURS = 20


class Features(NamedTuple):
    """Features, float32 ``[n, D]``, and labels, int32 ``[n]``, of the training and the test store."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    classes: np.ndarray


class Cell(NamedTuple):
    """One measurement: ``start`` of the ``budget`` labels are drawn at random, the strategy asks for the others."""

    start: int
    budget: int
    strategy: str
    seed: int


def main(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    train: Annotated[str, typer.Option(help="Labelled store; its labels are given when they are requested.")],
    test: Annotated[str, typer.Option(help="Labelled store that nothing is chosen by.")],
    folder: Annotated[Path, typer.Option(help="Keeps the features and the rows.")],
    name: Annotated[str, typer.Option(help="Name of the images, for the table.")] = "",
    only: Annotated[str, typer.Option(help="Measure this strategy alone, beside random.")] = "",
    held_out: Annotated[int, typer.Option(help="Training images to measure on.")] = 10_000,
    budgets: Annotated[str, typer.Option(help="Numbers of labels.")] = ",".join(map(str, BUDGETS)),
    seeds: Annotated[int, typer.Option(help="Seeds of each cell.")] = SEEDS,
    ship: Annotated[bool, typer.Option("--ship", help="Replace the package's table.")] = False,
) -> None:
    """Measure the cells that are missing, append a row for each, and print the table of all."""
    folder.mkdir(parents=True, exist_ok=True)
    found, rows = features_of(run, train, test, folder / "features.npz"), folder / "rows.csv"
    done = {Cell(int(row["start"]), int(row["budget"]), row["strategy"], int(row["seed"])) for row in read(rows)}
    for cell in cells([int(one) for one in budgets.split(",")], seeds, only):
        if cell not in done:
            append(rows, {"store": name or Path(train).name, **cell._asdict(), **measure(found, cell, held_out)})
    measured = [Measured.of(row) for row in read(rows)]
    print(table(measured))
    if ship:
        fields = Measured._fields
        lines = [",".join(fields), *(",".join(map(str, one)) for one in measured)]
        MEASURED.write_text("\n".join(lines) + "\n")


def cells(budgets: list[int], seeds: int, only: str) -> Iterator[Cell]:
    """Yield the cells: all strategies from half of the budget, those without a probe from nothing too."""
    names = [name for name in STRATEGIES if not only or name in ("random", only)]
    for budget in budgets:
        for seed in range(seeds):
            for name in names:
                if not STRATEGIES[name].needs_probe:
                    yield Cell(0, budget, name, seed)
                yield Cell(budget // 2, budget, name, seed)


def features_of(run: Path, train: str, test: str, file: Path) -> Features:
    """Return the features of both stores' labelled images, from the file if it is there."""
    if not file.exists():
        checkpoint = locate(run)
        data, shape = checkpoint.config.data, checkpoint.config.facts.image_shape
        stores = [open_labelled(one, data, shape) for one in (train, test)]
        labels = [stores[0].labels, labels_by_name(*stores)]
        encoder, device = load_method(checkpoint).backbone.to(fastest_device()), fastest_device()
        found = []
        for store, some in zip(stores, labels, strict=True):
            rows = np.flatnonzero(some >= 0)
            found += [extract(encoder, store, rows, device, checkpoint.config).cpu().numpy(), some[rows]]
        np.savez(file, *found, np.array(stores[0].class_names))
    with np.load(file) as content:
        return Features(*(content[f"arr_{number}"] for number in range(5)))


def measure(found: Features, cell: Cell, held_out: int) -> dict[str, Any]:
    """Return the accuracies with the labels of a cell, and the seconds that its choice took."""
    order = draw(len(found.train), len(found.train), cell.seed, _HELD_OUT)
    held, rows = order[:held_out], np.sort(order[held_out:])
    x, truth = found.train[rows], found.train_labels[rows]
    labels = np.full(len(rows), -1, np.int32)
    first = draw(cell.start, len(rows), cell.seed, _FIRST)
    labels[first] = truth[first]
    began = time.perf_counter()
    asked = select(cell.strategy, Pool(x, labels, len(found.classes)), cell.budget - cell.start, cell.seed).rows
    seconds = time.perf_counter() - began
    labels[asked] = truth[asked]
    pool = Pool(x, labels, len(found.classes))
    measured = accuracies(pool, found.train[held], found.train_labels[held])
    tested = {f"test_{name}": value for name, value in accuracies(pool, found.test, found.test_labels).items()}
    return measured | tested | {"seconds": round(seconds, 2)}


def accuracies(pool: Pool, x: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return the accuracy of the linear probe and of kNN, with as many voters as labels a class, 1 to 20."""
    probe = Probe.fit(pool)
    answers = probe.over(Pool(x, truth), np.arange(len(x)), lambda logits: logits.argmax(1))
    k = min(_NEIGHBOURS, max(1, len(pool.labelled) // pool.num_classes))
    bank, bank_labels, queries, query_labels = map(
        torch.from_numpy, (pool.features[pool.labelled], pool.labels[pool.labelled].astype(np.int64), x, truth)
    )
    return {
        "linear": float((probe.classifier.classes[answers] == truth).mean()),
        "knn": knn_accuracy(bank, bank_labels, queries, query_labels, k=k),
    }


def read(file: Path) -> list[dict[str, str]]:
    """Read the rows of a CSV file; none where it is missing."""
    if not file.exists():
        return []
    with file.open(newline="") as content:
        return list(csv.DictReader(content))


def append(file: Path, row: dict[str, Any]) -> None:
    """Append a row to a CSV file, below the names of its columns, and print it."""
    new = not file.exists()
    with file.open("a", newline="") as content:
        writer = csv.DictWriter(content, list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(*row.values(), flush=True)


def table(measured: list[Measured]) -> str:
    """Return a Markdown table: random's accuracy in %, and the others' mean gain over it in points with its interval.

    The accuracies are of the linear probe, and the intervals of 95 %.
    """
    budgets = sorted({one.budget for one in measured})
    lines = []
    for before, from_none in (("none", True), ("half, at random", False)):
        for name in STRATEGIES:
            texts = [cell_text(measured, name, budget, from_none) for budget in budgets]
            if any(texts):
                lines.append([before, name, *texts])
    return page.table(["labels before", "strategy", *(f"{budget:,} labels" for budget in budgets)], lines)


def cell_text(measured: list[Measured], name: str, budget: int, from_none: bool) -> str:
    """Return what the table says of a strategy at a budget."""
    gain = gains(measured, name, budget, from_none=from_none)
    if gain and name == "random":
        same = [one for one in measured if one.budget == budget and (one.start == 0) == from_none]
        return f"{100 * statistics.mean(one.linear for one in same if one.strategy == name):.1f} %"
    return f"{100 * gain.mean:+.1f} ({100 * gain.low:+.1f} .. {100 * gain.high:+.1f})" if gain else ""


if __name__ == "__main__":
    typer.run(main)
