"""Fine-tuning of an encoder on some labels: the cells of a grid as runs, beside others from random weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Console

from cluster.launch import ray_where_needed
from cluster.pipelines.cells import Protocol
from cluster.pipelines.completion import complete, finished_step
from cluster.pipelines.tested import Scores, Tested, tested
from ssl_dist.checkpoint.room import expect_room
from ssl_dist.commands.console import say


class Row(NamedTuple):
    """A cell of the grid, over all seeds.

    Attributes:
        start, settings: as of ``Cell``.
        best: whether it has the best validation of several cells of this start, and is the first of equal ones.
    """

    start: str
    settings: dict[str, Any]
    scores: Scores
    best: bool = False

    def plain(self) -> dict[str, Any]:
        """Return the row for JSON."""
        return {"start": self.start, "settings": self.settings, **self.scores.plain(), "best": self.best}


def fine_tune(protocol: Protocol, console: Console) -> list[Row]:
    """Complete all cells and test them; a cell that was finished and tested before is not repeated.

    The checkpoint of the best validation accuracy is tested, or the last one where there is no validation.

    Raises:
        ConfigError, StoreError: see ``Protocol.cells`` and ``completion.complete``.
        RunError: a run was stopped before its last step.
    """
    cells = protocol.cells
    expect_room(protocol.directory, [cell.config for cell in cells])  # refuses also more layers than there are
    found = dict[str, list[Tested]]()
    unfinished = (cell.config.cluster for cell in cells if finished_step(cell.directory, cell.config) is None)
    with ray_where_needed(next(unfinished, None), console):
        for number, cell in enumerate(cells, 1):
            say(f"run {number} of {len(cells)}", console)
            complete(cell.directory, cell.config, console)
            answers = tested(cell.directory, "best" if cell.config.probe else "newest", protocol.opened)
            found.setdefault(json.dumps([cell.start, cell.settings]), []).append(answers)
    scored = [(*json.loads(key), Scores.of(runs, protocol.opened)) for key, runs in found.items()]
    return _with_best([Row(start, settings, scores) for start, settings, scores in scored])


def _with_best(rows: Sequence[Row]) -> list[Row]:
    """Mark the best cell of each start, by its validation alone, where there are several."""
    marked = list(rows)
    for start in {row.start for row in rows}:
        validated = [(row.scores.validation, -number) for number, row in enumerate(rows) if row.start == start]
        known = [(validation, number) for validation, number in validated if validation is not None]
        if len(known) > 1:
            best = -max(known)[1]
            marked[best] = rows[best]._replace(best=True)
    return marked
