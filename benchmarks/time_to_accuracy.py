"""kNN accuracy on CIFAR-10's test images over wall time: recipes of ours beside lightly's loop.

    python -m benchmarks.time_to_accuracy --train stores/cifar10-train --test stores/cifar10-test --out runs/accuracy

Trainings run one after the other, and a finished one is not repeated; one that was stopped must be deleted, since its
times are not whole. Time counts from the start of a training's process, Ray's start and checkpoints included.
Afterwards one function measures all checkpoints: kNN-20 of the test images among all training images.

lightly's loop has the network, batch, rate and precision of the recipe ``simclr-cifar10``, and a cosine over its
length, as ours; its views and loader processes are those of its examples.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer

from benchmarks import page
from benchmarks.lightly_training import POINTS
from ssl_dist.config import RunConfig
from ssl_dist.data import resolve
from ssl_dist.encoder import Encoder, load_encoder
from ssl_dist.errors import RunError
from ssl_dist.evaluate.knn import knn_accuracy
from ssl_dist.files import write_text
from ssl_dist.store import ImageStore

FAST, USUAL, LIGHTLY = "simclr-cifar10-fast", "simclr-cifar10", "lightly"
_TOGETHER = 256  # images of a forward pass when features are computed


class Point(NamedTuple):
    """A measured checkpoint.

    Attributes:
        seconds: since the process of the training began.
        top1: kNN accuracy on the test images, a share.
    """

    seconds: float
    top1: float


class Training(NamedTuple):
    """One training.

    Attributes:
        name: a recipe or its file, or LIGHTLY.
    """

    name: str
    seed: int
    folder: Path

    @property
    def directory(self) -> Path:
        """The run's directory, or the folder of lightly's weights."""
        return self.folder / f"{Path(self.name).name}-{self.seed}"

    @property
    def note(self) -> dict[str, Any]:
        """What is known of the training: ``command``, ``began`` and ``ended`` in seconds since 1970, ``points``."""
        file = self._file
        return json.loads(file.read_text()) if file.exists() else {}

    @property
    def points(self) -> list[Point]:
        """The measured checkpoints; none of a training that has not been measured."""
        return [Point(*one) for one in self.note.get("points", [])]

    def keep(self, **facts: Any) -> None:
        """Add facts to the note."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self._file, json.dumps({**self.note, **facts}))

    @property
    def _file(self) -> Path:
        return self.folder / f"{self.directory.name}.json"


def main(
    train: Annotated[Path, typer.Option(help="Store of the training images.")],
    test: Annotated[Path, typer.Option(help="Store of the test images.")],
    out: Annotated[Path, typer.Option(help="Folder of the trainings.")] = Path("runs/time-to-accuracy"),
    names: Annotated[str, typer.Option(help="Recipes and lightly, by commas.")] = f"{FAST},{USUAL},{LIGHTLY}",
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each.")] = 3,
    lightly_epochs: Annotated[float, typer.Option(help="Length of lightly's trainings.")] = 3.0,
    docs: Annotated[Path, typer.Option(help="Folder of performance.md.")] = page.DOCS,
) -> None:
    """Complete the trainings, measure them, and write the section and the picture of performance.md."""
    stores = ImageStore(train), ImageStore(test)
    everyone = [Training(name, seed, out.absolute()) for seed in range(seeds) for name in names.split(",")]
    for one in everyone:
        _train(one, _command(one, train.absolute(), lightly_epochs))
        if not one.points:
            encoders = lightly_encoders(one.directory) if one.name == LIGHTLY else our_encoders(one.directory)
            points = [Point(at - one.note["began"], _top1(encoder, *stores)) for at, encoder in encoders]
            one.keep(points=points, machine=page.machine())
            print(json.dumps({"name": one.name, "seed": one.seed, "points": points}), flush=True)
    measured = {name: [one.points for one in everyone if one.name == name] for name in names.split(",")}
    page.write_section("Time to accuracy", _section(measured), docs)
    _draw(measured, docs / "time-to-accuracy.png")


def _command(one: Training, store: Path, lightly_epochs: float) -> list[str]:
    if one.name == LIGHTLY:
        arguments = [str(one.directory), str(store), str(one.seed), str(lightly_epochs)]
        return [sys.executable, "-m", "benchmarks.lightly_training", *arguments]
    every = RunConfig.load(one.name).epochs / POINTS
    settings = {
        "seed": one.seed,
        "data.store": store,
        "probe": "null",
        "checkpoint.every_epochs": f"{every:g}",
        "checkpoint.keep": POINTS + 1,
    }
    given = (word for key, value in settings.items() for word in ("--set", f"{key}={value}"))
    return [sys.executable, "-m", "ssl_dist", "pretrain", one.name, *given, "--run-dir", str(one.directory)]


def _train(one: Training, command: list[str]) -> None:
    """Run a training from its start to its end, unless that was done.

    Raises:
        RunError: it was stopped, or its command was another one.
    """
    if one.note.get("command", command) != command:
        raise RunError(f"{one.directory} was trained by another command, {one.note['command']}: name another --out")
    if "ended" in one.note:
        return
    if one.directory.exists():
        raise RunError(f"{one.directory} is of a training that was stopped: delete it, its times are not whole")
    one.keep(command=command, began=time.time())
    subprocess.run(command, check=True, stdout=sys.stderr)
    one.keep(ended=time.time())


def our_encoders(run: Path) -> Iterator[tuple[float, Encoder]]:
    """Yield each checkpoint of a run: when it was complete, in seconds since 1970, and its encoder."""
    for checkpoint in sorted((run / "checkpoints").glob("step-*")):
        yield checkpoint.stat().st_mtime, load_encoder(run, int(checkpoint.name.removeprefix("step-")))


def lightly_encoders(folder: Path) -> Iterator[tuple[float, Encoder]]:
    """Yield the same of the weights that ``benchmarks.lightly_training`` has written."""
    for file in sorted(folder.glob("*.pt")):
        config = RunConfig.from_tree(json.loads((folder / "config.json").read_text()), str(folder))
        backbone = resolve(config).config.initial_backbone()
        backbone.body.load_state_dict(torch.load(file, weights_only=True))
        yield file.stat().st_mtime, Encoder(backbone, 32, _TOGETHER)


def _top1(encoder: Encoder, train: ImageStore, test: ImageStore) -> float:
    bank, queries = encoder.embed(train), encoder.embed(test)
    return knn_accuracy(bank, _labels(train), queries, _labels(test), k=20)


def _labels(store: ImageStore) -> torch.Tensor:
    return torch.from_numpy(store.labels.astype(np.int64))


def _section(measured: dict[str, list[list[Point]]]) -> str:
    rows = []
    for name, trainings in measured.items():
        for number in range(min(map(len, trainings))):
            seconds, top1 = zip(*(points[number] for points in trainings), strict=True)
            rows.append([name, _range(seconds, 1 / 60, ".1f"), _range(top1, 100, ".1f"), str(len(trainings))])
    return f"""
`python -m benchmarks.time_to_accuracy`: kNN-20 of CIFAR-10's test images among the 50,000 training images, over wall
time since the command was typed: medians over seeds (lowest and highest). {page.machine()}

![Accuracy over time](time-to-accuracy.png)

{page.table(["training", "minutes", "kNN-20, %", "seeds"], rows)}
"""


def _range(values: tuple[float, ...], factor: float, form: str) -> str:
    median, low, high = (factor * one(values) for one in (statistics.median, min, max))
    return f"{median:{form}} ({low:{form}} to {high:{form}})" if len(values) > 1 else f"{median:{form}}"


def _draw(measured: dict[str, list[list[Point]]], picture: Path) -> None:
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for number, (name, trainings) in enumerate(measured.items()):
        for training, points in enumerate(trainings):
            times = [one.seconds / 60 for one in points]
            values = [100 * one.top1 for one in points]
            label = name if training == 0 else None
            axis.plot(times, values, marker="o", markersize=3, color=f"C{number}", label=label)
    axis.set(xlabel="minutes since the command was typed", ylabel="kNN-20 of the test images, %")
    axis.legend()
    axis.grid(alpha=0.3)
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    typer.run(main)
