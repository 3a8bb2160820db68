"""What all studies share: the stores, the small network, and the words of commands that several have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.studies.cells import Cell, cell
from benchmarks.studies.claims import Claim, Row

SEEDS = (0, 1, 2)
EPOCHS = 1.0
"""Passes of a pretraining over the 50,000 images; docs/studies.md has the time that all cells take."""
TRAIN, TEST = "stores/cifar10-train", "stores/cifar10-test"
PAIR = f"--train {TRAIN} --test {TEST}"
ALONE = "--set cluster.workers=1 --set engine.precision=fp32"
"""One worker, so that two cells run side by side; fp32, which no CPU has to emulate."""
NETWORK = f"--set backbone.width=32 {ALONE}"  # ResNet-8


class Study(NamedTuple):
    """A study that is replayed.

    Attributes:
        title, setting: what they did, and what stands for it here.
        cells: the cells of a number of epochs, the most important ones first.
        rows, claims: what its tables say.
    """

    title: str
    setting: str
    cells: Callable[[float], Sequence[Cell]]
    rows: Sequence[Row]
    claims: Sequence[Claim]


def stores(train: Path, test: Path) -> list[Cell]:
    """Return the cells that build the two stores."""
    return [
        cell("cifar10-train", f"ssl-dist store build {train} {TRAIN}"),
        cell("cifar10-test", f"ssl-dist store build {test} {TEST} --split test"),
    ]


def pretrain(name: str, recipe: str, epochs: float, settings: str, store: str = TRAIN) -> Cell:
    """Return the cell of a pretraining; a fifth of an epoch, or of a shorter run, is its warm-up."""
    warmup = 0.2 * min(epochs, 1)
    return cell(
        name,
        f"""ssl-dist pretrain {recipe} --set data.store={store} --set epochs={epochs:g} --set
        optim.warmup_epochs={warmup:g} {settings} --run-dir runs/{name}""",
    )
