"""Benchmark of the stall that a checkpoint puts on training: written behind the step beside written in it.

    python -m benchmarks.checkpoints        # about three minutes; writes into docs/performance.md

One process trains (SimCLR, ResNet-50, AdamW, random images) and writes a checkpoint of 300 MB every few steps, to a
folder of the machine's disk. The stall is the time that a round of steps lasts longer than one without a checkpoint, so
it includes the slower steps that follow. Rounds of the three kinds take turns; the figures are medians over rounds.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer

from benchmarks import page
from benchmarks.memory import random_store
from ssl_dist.checkpoint import Checkpoints, Writer
from ssl_dist.collectives import World
from ssl_dist.config import RunConfig
from ssl_dist.data import resolve
from ssl_dist.data.batches import Batches
from ssl_dist.training.engine import Engine

_BATCH = 32


def main(
    steps: Annotated[int, typer.Option(help="Steps of a round, with one checkpoint after the first.")] = 4,
    rounds: Annotated[int, typer.Option(help="Rounds of each kind.")] = 9,
    backbone: Annotated[str, typer.Option(help="Network.")] = "resnet50",
    docs: Annotated[Path, typer.Option(help="Folder of performance.md.")] = page.DOCS,
) -> None:
    """Measure the rounds, print the figures as JSON, and write the section of performance.md."""
    torch.set_num_threads(1)  # leave a core to the writer: a GPU's host has cores to spare
    with tempfile.TemporaryDirectory() as folder:
        store = random_store(Path(folder), 4 * _BATCH)
        training = _Training(store, backbone, Path(folder) / "run")
        training.round(2, lambda step: None)  # warm-up
        kinds = {"none": training.nothing, "in the step": training.in_the_step, "behind it": training.behind}
        times: dict[str, list[_Round]] = {kind: [] for kind in kinds}
        for _ in range(rounds):
            for kind, save in kinds.items():
                times[kind].append(training.round(steps, save))
        size = sum(file.stat().st_size for file in Checkpoints(training.run).list()[0].iterdir())
    base = statistics.median(one.seconds for one in times["none"])
    noise = statistics.median(abs(one.seconds - base) for one in times["none"])
    whole = {kind: statistics.median(one.seconds for one in found) - base for kind, found in times.items()}
    calls = {kind: statistics.median(one.call_s for one in found) for kind, found in times.items()}
    shares = {"call": calls["behind it"] / calls["in the step"], "round": whole["behind it"] / whole["in the step"]}
    figures = {"bytes": size, "round_s": base, "noise_s": noise, "stall_s": whole, "call_s": calls, "share": shares}
    print(json.dumps(figures), flush=True)
    rows = [
        [kind, f"{calls[kind] * 1e3:,.0f}", f"{whole[kind] * 1e3:,.0f}"] for kind in ("in the step", "behind it")
    ] + [["behind it, in units of a write in the step", f"{shares['call']:.2f}", f"{shares['round']:.2f}"]]
    text = f"""
`python -m benchmarks.checkpoints`: {backbone} with AdamW, a checkpoint of {size / 1e6:,.0f} MB after the first of
{steps} steps. "The call" is the time that the step itself waits; behind the step, it is a copy of the tensors into
memory that is already allocated. "The round" is the time that the {steps} steps last longer than without a checkpoint
({base:.2f} s; half of those rounds are within {noise * 1e3:.0f} ms of that), so it includes the writer's use of memory
and disk. The figures are medians of {rounds} rounds; the kinds take turns. {page.machine()}

{page.table(["checkpoint written", "the call, ms", "the round, ms"], rows)}
"""
    page.write_section("Checkpoints", text, docs)


class _Round(NamedTuple):
    seconds: float
    call_s: float


class _Training:
    def __init__(self, store: Path, backbone: str, run: Path) -> None:
        overrides = {
            "data.store": str(store),
            "batch": {"size": _BATCH, "micro": _BATCH},
            "backbone": {"name": backbone},
        }
        data = resolve(RunConfig.load("simclr-cifar10", {**overrides, "engine.zero_stage": 0}))
        self._config = data.config
        self._engine = Engine(self._config.initial_method(), self._config, World())
        self._batches = Batches(data.sample_plan, World(), 0, 4)
        self._writer = Writer(Checkpoints.from_config(run, self._config), self._config)
        self.run = run

    def round(self, steps: int, save: Callable[[int], None]) -> _Round:
        """Take ``steps`` steps and call ``save`` after the first; the writer is idle before and after the round."""
        began, call_s = time.perf_counter(), 0.0
        for step in range(steps):
            self._engine.step(self._batches.fetch(step % 4), 1e-3)
            if step == 0:
                called = time.perf_counter()
                save(step)
                call_s = time.perf_counter() - called
        seconds = time.perf_counter() - began
        self._writer.wait()
        return _Round(seconds, call_s)

    def nothing(self, step: int) -> None:
        """Write no checkpoint."""

    def in_the_step(self, step: int) -> None:
        """Write a checkpoint before the next step, as a loop without a writer thread does."""
        Checkpoints(self.run).save(step, self._config, self._engine.state())

    def behind(self, step: int) -> None:
        """Hand a checkpoint to the writer thread, as ``pretrain`` does."""
        self._writer.write(step, self._engine.state, None)


if __name__ == "__main__":
    typer.run(main)
