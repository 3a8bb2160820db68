"""Semi-supervised learning from an encoder at several ratios of labelled to unlabelled images, beside labels alone."""

from __future__ import annotations

from typing import Any, NamedTuple

from rich.console import Console

from cluster.launch import ray_where_needed
from cluster.pipelines.completion import complete, finished_step
from cluster.pipelines.self_training import SelfTraining
from cluster.pipelines.semi_cells import SemiCell, SemiProtocol
from cluster.pipelines.tested import Scores, Tested, tested
from ssl_dist.checkpoint.room import expect_room
from ssl_dist.commands.console import say

_NEVER = -1.0  # margin of accuracy: no round can lose more, so that test labels end nothing


class SemiRow(NamedTuple):
    """A method at one ratio, over all seeds; ``method``, ``start`` and ``ratio`` are as of ``SemiCell``."""

    method: str
    start: str
    ratio: int
    scores: Scores

    def plain(self) -> dict[str, Any]:
        """Return the row for JSON."""
        return {"method": self.method, "start": self.start, "ratio": self.ratio, **self.scores.plain()}


def compare_semi(protocol: SemiProtocol, console: Console) -> list[SemiRow]:
    """Complete all runs and test their last checkpoints; what was finished before is not repeated.

    Raises:
        ConfigError, StoreError: see ``SemiProtocol.cells``, ``completion.complete`` and ``SelfTraining.run``.
        RunError: a run was stopped before its last step.
    """
    cells = protocol.cells
    expect_room(protocol.directory, [cell.config for cell in cells])
    found = dict[tuple[str, str, int], list[Tested]]()
    unfinished = (cell.config.cluster for cell in cells if finished_step(_last_run(cell), cell.config) is None)
    with ray_where_needed(next(unfinished, None), console):
        for number, cell in enumerate(cells, 1):
            say(f"{number} of {len(cells)}: {cell.directory.name}", console)
            _complete(cell, protocol.stores[1], console)
            answers = tested(_last_run(cell), "newest", protocol.opened)
            found.setdefault((cell.method, cell.start, cell.ratio), []).append(answers)
    return [SemiRow(*key, Scores.of(runs, protocol.opened)) for key, runs in found.items()]


def _last_run(cell: SemiCell) -> Any:
    """Return the directory of the run that is tested."""
    return cell.directory / "round-1" if cell.method == "pseudo-labels" else cell.directory


def _complete(cell: SemiCell, test: str, console: Console) -> None:
    """Complete the run of a cell; with pseudo-labels, one that gives them, and one that learns them."""
    if cell.method != "pseudo-labels":
        complete(cell.directory, cell.config, console)
    elif finished_step(_last_run(cell), cell.config) is None:
        SelfTraining(cell.directory, cell.config, test, 1.0, _NEVER, 1, cell.steps).run(console)
