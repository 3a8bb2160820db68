"""Fine-tuning of an encoder on some labels: the cells of a grid as runs, beside others from random weights."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import xxhash
from rich.console import Console

from cluster.connect import ray_with_capacity
from cluster.lone import needs_no_ray
from cluster.pipelines.cells import Opened, Protocol
from cluster.pipelines.completion import complete, finished_step
from ssl_dist.checkpoint import checksum, locate
from ssl_dist.checkpoint.room import expect_room
from ssl_dist.commands.console import ImageBar, image_bar, say, waiting
from ssl_dist.data.images import store_digest
from ssl_dist.evaluate.pseudo_labels import predict
from ssl_dist.evaluate.scores import TOP, Accuracy, Answers, spread
from ssl_dist.files import replacing, write_text
from ssl_dist.settings import CheckpointChoice

TESTED, ANSWERS = "tested.json", "answers.npz"


class Row(NamedTuple):
    """A cell of the grid, over all seeds.

    Attributes:
        start, settings: as of ``Cell``.
        validation: mean accuracy of the tested checkpoints on the validation part; None where there is none.
        top1, top5: mean accuracies on the test store with their intervals; top5 is None with five classes or fewer.
        runs: of each seed: its run, its checkpoint and its accuracies.
        best: whether it has the best ``validation`` of several cells of this start, and is the first of equal ones.
    """

    start: str
    settings: dict[str, Any]
    validation: float | None
    top1: Accuracy
    top5: Accuracy | None
    runs: list[dict[str, Any]]
    best: bool = False

    @property
    def spread(self) -> float | None:
        """Standard deviation of the accuracy over the seeds; None of one."""
        return spread([one["top1"] for one in self.runs])

    def plain(self) -> dict[str, Any]:
        """Return the row for JSON."""
        top5 = self.top5 and {"top5": self.top5.value, "top5_interval": [self.top5.low, self.top5.high]}
        return {
            "start": self.start,
            "settings": self.settings,
            "validation": self.validation,
            "top1": self.top1.value,
            "top1_interval": [self.top1.low, self.top1.high],
            **(top5 or {}),
            "spread": self.spread,
            "best": self.best,
            "runs": self.runs,
        }


def fine_tune(protocol: Protocol, console: Console) -> list[Row]:
    """Complete all cells and test them; a cell that was finished and tested before is not repeated.

    The checkpoint of the best validation accuracy is tested, or the last one where there is no validation.

    Raises:
        ConfigError, StoreError: see ``Protocol.cells`` and ``completion.complete``.
        RunError: a run was stopped before its last step.
    """
    cells = protocol.cells
    expect_room(protocol.directory, [cell.config for cell in cells])  # refuses also more layers than there are
    found = dict[str, list[tuple[dict[str, Any], Answers]]]()
    with contextlib.ExitStack() as ray:  # one for all cells, since it takes seconds to start
        unfinished = [cell for cell in cells if finished_step(cell.directory, cell.config) is None]
        if unfinished and not needs_no_ray(unfinished[0].config.cluster):
            with waiting("reaching Ray", console):
                ray.enter_context(ray_with_capacity(unfinished[0].config.cluster))
        for number, cell in enumerate(cells, 1):
            say(f"run {number} of {len(cells)}", console)
            complete(cell.directory, cell.config, console)
            tested = answers_of(cell.directory, "best" if cell.config.probe else "newest", protocol.opened)
            found.setdefault(json.dumps([cell.start, cell.settings]), []).append(tested)
    truth, classes = protocol.opened.truth, len(protocol.opened.train.class_names)
    return _with_best([_row(key, runs, truth[truth >= 0], classes) for key, runs in found.items()])


def answers_of(run: Path, choice: CheckpointChoice, opened: Opened) -> tuple[dict[str, Any], Answers]:
    """Return what a finished run answers about the test images, beside its checkpoint; its directory keeps it."""
    checkpoint = locate(run, choice)
    described = {"run": str(run), "seed": checkpoint.config.seed, "checkpoint": checkpoint.path.name}
    described |= {"step": checkpoint.step, "validation": checkpoint.score}
    rows = np.flatnonzero(opened.truth >= 0)
    of = {"checkpoint": checkpoint.path.name, "model": checksum(checkpoint.model_file)}
    of |= {"test": store_digest(opened.test), "images": xxhash.xxh3_64_hexdigest(rows.tobytes())}
    file = run / TESTED
    with contextlib.suppress(OSError, ValueError):
        if of.items() <= json.loads(file.read_text(encoding="utf-8")).items():
            kept = np.load(run / ANSWERS)
            return described, Answers(kept["classes"], kept["confidence"])
    with image_bar("classifying the test images", "reading the checkpoint") as bar:
        answers = Answers.of(predict(checkpoint.path, opened.test, rows, "newest", _Counted(bar, len(rows))).numpy())
    file.unlink(missing_ok=True)  # it must never lie beside other answers
    with replacing(run / ANSWERS) as aside, aside.open("wb") as content:
        np.savez(content, **answers._asdict())
    write_text(file, json.dumps(of, indent=1))
    return described, answers


class _Counted:
    """Tells a bar of how many images are done, of the chunks' sizes."""

    def __init__(self, bar: ImageBar, total: int) -> None:
        self._bar, self._done, self._total = bar, 0, total

    def __call__(self, images: int) -> None:
        self._done += images
        self._bar(self._done, self._total)


def _row(key: str, tested: Sequence[tuple[dict[str, Any], Answers]], truth: np.ndarray, num_classes: int) -> Row:
    """Return the row of a cell, whose start and settings the key has, of the answers of all its seeds."""
    start, settings = json.loads(key)
    rights = {top: [answers.right(truth, top) for _, answers in tested] for top in (1, TOP)}
    validations = [one["validation"] for one, _ in tested]
    runs = [{**one, "top1": float(right.mean())} for (one, _), right in zip(tested, rights[1], strict=True)]
    top5 = Accuracy.mean(rights[TOP]) if num_classes > TOP else None
    return Row(
        start, settings, None if None in validations else fmean(validations), Accuracy.mean(rights[1]), top5, runs
    )


def _with_best(rows: Sequence[Row]) -> list[Row]:
    """Mark the best cell of each start, by its validation alone, where there are several."""
    marked = list(rows)
    for start in {row.start for row in rows}:
        mine = [number for number, row in enumerate(rows) if row.start == start and row.validation is not None]
        if len(mine) > 1:
            best = max(mine, key=lambda number: (rows[number].validation, -number))
            marked[best] = rows[best]._replace(best=True)
    return marked


def write_results(folder: Path, result: dict[str, Any]) -> Path:
    """Write the result of the command beside its runs."""
    write_text(folder / "results.json", json.dumps(result, indent=1))
    return folder / "results.json"
