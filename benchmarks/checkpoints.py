"""The stall that a checkpoint puts on training: written behind the step beside written in it.

    python -m benchmarks.checkpoints        # about two minutes; writes into docs/performance.md

One process trains (SimCLR, ResNet-50, AdamW, random images) and writes a checkpoint of 300 MB every few steps, to a
folder of the machine's disk. The stall is what such steps last longer than without checkpoints, the slower steps that
follow included. Rounds of the three kinds take turns, medians over rounds.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks import page
from benchmarks.memory import random_store
from ssl_dist import checkpoint
from ssl_dist.batches import Batches
from ssl_dist.collectives import World
from ssl_dist.config import RunConfig
from ssl_dist.engine import Engine
from ssl_dist.store import ImageStore

_BATCH = 32


def main(
    steps: Annotated[int, typer.Option(help="Steps of a round, with one checkpoint after the first.")] = 4,
    rounds: Annotated[int, typer.Option(help="Of each kind.")] = 5,
    backbone: Annotated[str, typer.Option(help="Network.")] = "resnet50",
    docs: Annotated[Path, typer.Option(help="Folder of performance.md.")] = page.DOCS,
) -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)  # the other core is the writer's, as a GPU's host has cores to spare
    with tempfile.TemporaryDirectory() as folder:
        store = random_store(Path(folder), 4 * _BATCH)
        training = _Training(store, backbone, Path(folder) / "run")
        training.round(2, lambda step: None)  # warm-up
        kinds = {"none": training.nothing, "in the step": training.in_the_step, "behind it": training.behind}
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(rounds):
            for kind, save in kinds.items():
                times[kind].append(training.round(steps, save))
        size = sum(file.stat().st_size for file in checkpoint.found(training.run)[0].iterdir())
    base = statistics.median(times["none"])
    stalls = {kind: statistics.median(times[kind]) - base for kind in ("in the step", "behind it")}
    share = stalls["behind it"] / stalls["in the step"]
    print(json.dumps({"bytes": size, "round_s": base, "stall_s": stalls, "share": share}), flush=True)
    rows = [[kind, f"{stall * 1e3:,.0f}", f"{stall / stalls['in the step']:.2f}"] for kind, stall in stalls.items()]
    text = f"""
`python -m benchmarks.checkpoints`: {backbone} with AdamW, a checkpoint of {size / 1e6:,.0f} MB after the first of
{steps} steps ({base:.1f} s without it); medians of {rounds} rounds. Behind the step, what is left is the copy of the
tensors, and the writer's use of memory. {page.machine()}

{page.table(["checkpoint written", "stall, ms", "in units of a write in the step"], rows)}
"""
    page.write_section("Checkpoints", text, docs)


class _Training:
    def __init__(self, store: Path, backbone: str, run: Path) -> None:
        overrides = {
            "data.store": str(store),
            "batch": {"size": _BATCH, "micro": _BATCH},
            "backbone": {"name": backbone},
        }
        self._config = RunConfig.load("simclr-cifar10", {**overrides, "engine.zero_stage": 0})
        self._engine = Engine(self._config.initial_method(), self._config, World())
        self._batches = Batches(ImageStore(store), self._config, World(), 0, 4)
        self._writer = checkpoint.Writer(run, self._config)
        self.run = run

    def round(self, steps: int, save: Callable[[int], None]) -> float:
        """Seconds of ``steps`` steps with ``save`` after the first; the writer is idle before and after."""
        began = time.perf_counter()
        for step in range(steps):
            self._engine.step(self._batches.fetch(step % 4), 1e-3)
            if step == 0:
                save(step)
        seconds = time.perf_counter() - began
        self._writer.wait()
        return seconds

    def nothing(self, step: int) -> None:
        """No checkpoint."""

    def in_the_step(self, step: int) -> None:
        """As a loop without a thread would."""
        checkpoint.save(self.run, step, self._config, self._engine.state())

    def behind(self, step: int) -> None:
        """As ``pretrain`` does."""
        self._writer.write(step, self._engine.state, None)


if __name__ == "__main__":
    typer.run(main)
