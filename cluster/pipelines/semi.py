"""Semi-supervised learning from an encoder at several ratios of labelled to unlabelled images, beside labels alone."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

from rich.console import Console

from cluster.connect import ray_with_capacity
from cluster.lone import needs_no_ray
from cluster.pipelines.completion import complete, finished_step
from cluster.pipelines.finetune import answers_of
from cluster.pipelines.self_training import SelfTraining
from cluster.pipelines.semi_cells import SemiCell, SemiProtocol
from ssl_dist.checkpoint.room import expect_room
from ssl_dist.commands.console import say, waiting
from ssl_dist.evaluate.scores import Accuracy, Answers, spread

_NEVER = -1.0  # margin of accuracy: no round can lose more, so that test labels end nothing


class SemiRow(NamedTuple):
    """A method at one ratio, over all seeds.

    Attributes:
        method, start, ratio: as of ``SemiCell``.
        top1: mean accuracy on the test store with its interval.
        runs: of each seed: its run, its checkpoint and its accuracy.
    """

    method: str
    start: str
    ratio: int
    top1: Accuracy
    runs: list[dict[str, Any]]

    @property
    def spread(self) -> float | None:
        """Standard deviation of the accuracy over the seeds; None of one."""
        return spread([one["top1"] for one in self.runs])

    def plain(self) -> dict[str, Any]:
        """Return the row for JSON."""
        of = {"method": self.method, "start": self.start, "ratio": self.ratio}
        figures = {"top1": self.top1.value, "top1_interval": [self.top1.low, self.top1.high], "spread": self.spread}
        return {**of, **figures, "runs": self.runs}


def compare_semi(protocol: SemiProtocol, console: Console) -> list[SemiRow]:
    """Complete all runs and test their last checkpoints; what was finished before is not repeated.

    Raises:
        ConfigError, StoreError: see ``SemiProtocol.cells``, ``completion.complete`` and ``SelfTraining.run``.
        RunError: a run was stopped before its last step.
    """
    cells = protocol.cells
    expect_room(protocol.directory, [cell.config for cell in cells])
    truth = protocol.opened.truth
    truth = truth[truth >= 0]
    found = dict[tuple[str, str, int], list[tuple[dict[str, Any], Answers]]]()
    with contextlib.ExitStack() as ray:  # one for all runs, since it takes seconds to start
        unfinished = [cell for cell in cells if finished_step(_last_run(cell), cell.config) is None]
        if unfinished and not needs_no_ray(unfinished[0].config.cluster):
            with waiting("reaching Ray", console):
                ray.enter_context(ray_with_capacity(unfinished[0].config.cluster))
        for number, cell in enumerate(cells, 1):
            say(f"{number} of {len(cells)}: {cell.directory.name}", console)
            _complete(cell, protocol.stores[1], console)
            tested = answers_of(_last_run(cell), "newest", protocol.opened)
            found.setdefault((cell.method, cell.start, cell.ratio), []).append(tested)
    rows = []
    for (method, start, ratio), tested_runs in found.items():
        rights = [answers.right(truth) for _, answers in tested_runs]
        runs = [{**one, "top1": float(right.mean())} for (one, _), right in zip(tested_runs, rights, strict=True)]
        rows.append(SemiRow(method, start, ratio, Accuracy.mean(rights), runs))
    return rows


def _last_run(cell: SemiCell) -> Any:
    """Return the directory of the run that is tested."""
    return cell.directory / "round-1" if cell.method == "pseudo-labels" else cell.directory


def _complete(cell: SemiCell, test: str, console: Console) -> None:
    """Complete the run of a cell; with pseudo-labels, one that gives them, and one that learns them."""
    if cell.method != "pseudo-labels":
        complete(cell.directory, cell.config, console)
    elif finished_step(_last_run(cell), cell.config) is None:
        SelfTraining(cell.directory, cell.config, test, 1.0, _NEVER, 1, cell.steps).run(console)
