"""Fine-tuning of an encoder on some labels: the cells of a grid as runs, beside others from random weights."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
import xxhash
from rich.console import Console

from cluster.connect import ray_with_capacity
from cluster.pipelines.cells import Cell, Opened, Protocol
from cluster.pipelines.completion import complete, finished_step
from ssl_dist.checkpoint import checksum, locate
from ssl_dist.checkpoint.room import expect_room
from ssl_dist.commands.console import image_bar, say, waiting
from ssl_dist.data.images import store_digest
from ssl_dist.evaluate.pseudo_labels import predict
from ssl_dist.files import write_text

TESTED = "tested.json"
_TOP = 5


class Row(NamedTuple):
    """A cell of the grid, over all seeds.

    Attributes:
        start, settings: as of ``Cell``.
        validation: mean accuracy of the tested checkpoints on the validation part; None where there is none.
        top1, top5: mean accuracies on the test store; top5 is None with five classes or fewer.
        spread: standard deviation of ``top1`` over the seeds; None of one.
        runs: of each seed: its run, its checkpoint and its accuracies.
        best: whether no cell of this start has a better ``validation``; the first of equal ones.
    """

    start: str
    settings: dict[str, Any]
    validation: float | None
    top1: float
    top5: float | None
    spread: float | None
    runs: list[dict[str, Any]]
    best: bool = False


def fine_tune(protocol: Protocol, console: Console) -> list[Row]:
    """Complete all cells and test them; a cell that was finished and tested before is not repeated.

    The checkpoint of the best validation accuracy is tested, or the last one where there is no validation.

    Raises:
        ConfigError, StoreError: see ``Protocol.cells`` and ``completion.complete``.
        RunError: a run was stopped before its last step.
    """
    cells = protocol.cells
    expect_room(protocol.directory, [cell.config for cell in cells])  # refuses also more layers than there are
    found = dict[str, list[dict[str, Any]]]()
    with contextlib.ExitStack() as ray:  # one for all cells, since it takes seconds to start
        if unfinished := [cell for cell in cells if finished_step(cell.directory, cell.config) is None]:
            with waiting("reaching Ray", console):
                ray.enter_context(ray_with_capacity(unfinished[0].config.cluster))
        for number, cell in enumerate(cells, 1):
            say(f"run {number} of {len(cells)}", console)
            complete(cell.directory, cell.config, console)
            tested = _tested(cell, protocol.opened)
            found.setdefault(json.dumps([cell.start, cell.settings]), []).append(tested)
    return _with_best([_row(*json.loads(key), runs) for key, runs in found.items()])  # type: ignore[call-arg]


def _tested(cell: Cell, opened: Opened) -> dict[str, Any]:
    """Return the accuracies of a finished cell, which its ``tested.json`` keeps."""
    _, test, truth = opened
    checkpoint = locate(cell.directory, "best" if cell.config.probe else "newest")
    labels = xxhash.xxh3_64_hexdigest(truth.tobytes())
    of = {"checkpoint": checkpoint.path.name, "model": checksum(checkpoint.model_file)}
    of |= {"test": store_digest(test), "test_labels": labels}
    file = cell.directory / TESTED
    with contextlib.suppress(OSError, ValueError):
        kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if of.items() <= kept.items():
            return kept
    rows = np.flatnonzero(truth >= 0)
    with image_bar("classifying the test images", "reading the checkpoint") as bar:
        done = 0

        def count(images: int) -> None:
            nonlocal done
            done += images
            bar(done, len(rows))

        probabilities = predict(checkpoint.path, test, rows, "newest", count).numpy()  # [n, K]
    result = {"run": str(cell.directory), "seed": cell.seed, **of, "steps": checkpoint.step}
    result |= {"validation": checkpoint.score, **_accuracies(probabilities, truth[rows])}
    write_text(file, json.dumps(result, indent=1))
    return result


def _accuracies(probabilities: np.ndarray, truth: np.ndarray) -> dict[str, float | None]:
    """Return top-1 and, of more than five classes, top-5 accuracy; a class that is not known is never right."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :_TOP]  # [n, 5]; of equal ones, the first class
    right = order == truth[:, None]
    top5 = float(right.any(1).mean()) if probabilities.shape[1] > _TOP else None
    return {"top1": float(right[:, 0].mean()), "top5": top5}


def _row(start: str, settings: dict[str, Any], runs: list[dict[str, Any]]) -> Row:
    def mean(name: str) -> float | None:
        values = [one[name] for one in runs]
        return None if None in values else fmean(values)

    top1 = [one["top1"] for one in runs]
    spread = stdev(top1) if len(top1) > 1 else None
    return Row(start, settings, mean("validation"), fmean(top1), mean("top5"), spread, runs)


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
