"""Training steps end to end on a CPU: ours with one worker and with two, beside a bare loop and lightly's.

    python -m benchmarks.end_to_end --nets convnet-32,resnet8-32

Each loop has a process of its own, and they take turns; whoever has no turn sleeps. Settings, images and views are
those of ``benchmarks.gpu end-to-end``. Ours with two workers has two processes of one thread each, the others have two
threads.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import statistics
import tempfile
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
import typer

from benchmarks import page, transforms
from benchmarks.cuda import synthetic
from benchmarks.cuda.end_to_end import Net, config_of, turn
from benchmarks.cuda.loops import Bare, Lightly, Loop, Ours, Steps
from benchmarks.cuda.measure import Record
from benchmarks.processes import Peak
from ssl_dist.config import RunConfig
from ssl_dist.machine import KEEP_FREED_MEMORY, has_bf16, num_cores

NETS = {
    "convnet-32": Net("convnet", "standard", 32, 512, 256, 4096),
    "resnet8-32": Net("resnet8", "half", 32, 512, 256, 4096, width=64),
    "resnet18-32": Net("resnet18", "small", 32, 128, 64, 2048),
    "resnet18-96": Net("resnet18", "standard", 96, 64, 32, 1024),
    "resnet50-96": Net("resnet50", "standard", 96, 64, 32, 1024),
}
CPU, _WARM_UP = torch.device("cpu"), 2


class Task(NamedTuple):
    """What a process needs to make its loop.

    Attributes:
        pixels: file of the images, uint8 ``[n, H, W, 3]``.
        threads: of each process.
        workers: processes of lightly's loader.
    """

    config: RunConfig
    pixels: Path
    threads: int
    workers: int = 0


def _ours(task: Task) -> Loop:
    return Ours(task.config, CPU)


def _bare(task: Task) -> Loop:
    return Bare(task.config, _pixels(task), CPU, compiled=False)


def _compiled(task: Task) -> Loop:
    return Bare(task.config, _pixels(task), CPU, compiled=True)


def _lightly(task: Task) -> Loop:
    return Lightly(task.config, _pixels(task), CPU, task.workers)


def _lightly_with_our_views(task: Task) -> Loop:
    return Lightly(task.config, _pixels(task), CPU, task.workers, our_views=True)


def _pixels(task: Task) -> np.ndarray:
    found: np.ndarray = np.load(task.pixels)
    return found


class OnTwo:
    """The product's engine on two workers: this process is one, and starts the other."""

    burst = 1

    def __init__(self, task: Task) -> None:
        context = multiprocessing.get_context("spawn")
        meeting = task.pixels.with_name("meeting")
        self._other, theirs = context.Pipe()
        self._process = context.Process(target=_second, args=(task, meeting, theirs), daemon=True)
        self._process.start()
        self._mine = _worker(task, 0, meeting)

    @property
    def waited_s(self) -> float:
        """Seconds that this worker has waited for data so far."""
        return self._mine.waited_s

    def steps(self) -> Steps:
        """Let both workers take a step."""
        mine = self._mine.steps()
        while True:
            self._other.send(True)
            yield next(mine)


def _worker(task: Task, rank: int, meeting: Path) -> Ours:
    torch.set_num_threads(task.threads)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    return Ours(task.config, CPU, rank=rank, size=2)


def _second(task: Task, meeting: Path, end: Connection) -> None:
    steps = _worker(task, 1, meeting).steps()
    with contextlib.suppress(EOFError):  # the first worker has ended
        while end.recv():
            next(steps)
    os._exit(0)


LOOPS: dict[str, tuple[Callable[[Task], Loop], int, int]] = {  # how it is made, threads, workers of a loader
    "ours, 1 worker": (_ours, 2, 0),
    "ours, 2 workers": (OnTwo, 1, 0),
    "bare loop": (_bare, 2, 0),
    "bare loop, compiled": (_compiled, 2, 0),
    "lightly, no loader process": (_lightly, 2, 0),
    "lightly, 2 loader processes": (_lightly, 2, 2),
    "lightly, our views": (_lightly_with_our_views, 2, 2),
}


class Contender:
    """A loop in a process of its own.

    Attributes:
        failed: why it cannot be measured, or not any more; empty where it can.
        turns: its records so far.
    """

    def __init__(self, name: str, task: Task) -> None:
        context = multiprocessing.get_context("spawn")
        self.name, self.turns, self.failed = name, list[Record](), ""
        self._end, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(name, task, theirs))
        ours = KEEP_FREED_MEMORY if name.startswith("ours") else {}  # as a worker of a run has it
        with mock.patch.dict(os.environ, ours):
            self._process.start()
        theirs.close()
        self.failed = self._answer() or self.failed

    def take_turn(self, seconds: float) -> Record:
        """Train for some seconds, and return the record; an empty one of a loop that has failed."""
        if self.failed:
            return {}
        with contextlib.suppress(OSError):  # it has ended since, which the answer tells
            self._end.send(seconds)
        record: Record = self._answer() or {}
        return record

    def peak_bytes(self) -> int:
        """Train for a second, and return the largest proportional memory of the process and its children."""
        assert self._process.pid
        with Peak(self._process.pid, every_s=0.2) as peak:
            self.take_turn(1.0)
        return peak.memory.pss

    def close(self) -> None:
        """End the process, and those that it has started."""
        with contextlib.suppress(OSError):  # it has ended
            self._end.send(None)
        self._process.join(30)
        self._process.kill()

    def _answer(self) -> Any:
        try:
            return self._end.recv()
        except EOFError:
            self._process.join()
            self.failed = f"its process ended with code {self._process.exitcode}"
            return None


def _serve(name: str, task: Task, end: Connection) -> None:
    """Make a loop, and train for as many seconds as the parent sends."""
    try:
        torch.set_num_threads(task.threads)
        loop = LOOPS[name][0](task)
        turn(loop, task.config.batch.size, CPU, 0, _WARM_UP)
    except Exception:
        end.send(traceback.format_exc(limit=-1).strip().rpartition("\n")[2][:200])
        return
    end.send("")
    while (seconds := end.recv()) is not None:
        end.send(turn(loop, task.config.batch.size, CPU, seconds, _WARM_UP))
    os._exit(0)  # the thread that fetches batches would go on


def main(
    nets: Annotated[str, typer.Option(help="Names of networks, by commas.")] = ",".join(NETS),
    loops: Annotated[str, typer.Option(help="Names of loops, by semicolons.")] = ";".join(LOOPS),
    seconds: Annotated[float, typer.Option(help="Time of a turn, s.")] = 8.0,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each loop.")] = 5,
    docs: Annotated[Path, typer.Option(help="Folder of performance.md.")] = page.DOCS,
) -> None:
    """Measure the loops on each network, print JSON lines, and write the section of performance.md."""
    precision, parts = "bf16" if has_bf16() else "fp32", []
    for name in nets.split(","):
        found = _measured(NETS[name], precision, loops.split(";"), seconds, rounds)
        for record in found:
            print(json.dumps({"net": name, **record}), flush=True)
        parts.append(_part(name, NETS[name], [record for record in found if "images_per_s" in record]))
    text = f"""
`python -m benchmarks.end_to_end`: SimCLR on random images in memory, {precision}, {num_cores()} cores; loops take
turns of {seconds:g} s, medians of {rounds} (lowest and highest). The bare loop is thirty lines of torch with our views
and loss, without store, DeepSpeed and Ray; lightly's is its examples' with its own views. Ours with two workers has two
processes of one thread, the others have two threads. Memory is what the process and its children hold at most.
{page.machine()}

{"".join(parts)}"""
    page.write_section("End to end", text, docs)


def _measured(net: Net, precision: str, loops: Sequence[str], seconds: float, rounds: int) -> list[Record]:
    with tempfile.TemporaryDirectory() as folder:
        pixels = synthetic.images(net.images, net.px)
        synthetic.write_store(Path(folder) / "store", pixels)
        np.save(Path(folder) / "pixels.npy", pixels)
        config = config_of(net, Path(folder) / "store", CPU, {"engine.precision": precision})
        missing = [name for name in loops if "lightly" in name and not transforms.installed(["lightly"])]
        contenders = list[Contender]()
        try:
            for name in (name for name in loops if name not in missing):
                _, threads, workers = LOOPS[name]
                contenders.append(Contender(name, Task(config, Path(folder) / "pixels.npy", threads, workers)))
            for _ in range(rounds):
                for one in contenders:
                    one.turns.append(one.take_turn(seconds))
            found = [_summary(one) for one in contenders]
        finally:
            for one in contenders:
                one.close()
    return [*({"loop": name, "missing": "lightly"} for name in missing), *found]


def _summary(contender: Contender) -> Record:
    if contender.failed:
        return {"loop": contender.name, "failed": contender.failed}
    turns = contender.turns
    rates = [one["images_per_s"] for one in turns]
    return {
        "loop": contender.name,
        "images_per_s": statistics.median(rates),
        "all_images_per_s": rates,
        "cpu_ms_per_image": statistics.median(one["cpu_ms_per_image"] for one in turns),
        "peak_bytes": contender.peak_bytes(),
    }


def _part(name: str, net: Net, records: Sequence[Record]) -> str:
    """Return the table of one network; ratios are medians over the rounds, in which the loops are side by side."""
    header = ["images/s", *(f"{one['loop']} ÷ this loop" for one in records if one["loop"].startswith("ours"))]
    ours = [one["all_images_per_s"] for one in records if one["loop"].startswith("ours")]
    rows = [
        [
            one["loop"],
            f"{one['images_per_s']:,.0f} ({min(one['all_images_per_s']):,.0f} to {max(one['all_images_per_s']):,.0f})",
            *(f"{_ratio(mine, one['all_images_per_s']):.2f}" for mine in ours),
            f"{one['cpu_ms_per_image']:.2f}",
            f"{one['peak_bytes'] / 1e6:,.0f}",
        ]
        for one in records
    ]
    title = f"{name}: batch {net.batch}, micro-batches of {net.micro}"
    return f"{title}\n\n{page.table(['loop', *header, 'CPU ms an image', 'memory, MB'], rows)}\n\n"


def _ratio(ours: Sequence[float], others: Sequence[float]) -> float:
    return statistics.median(mine / other for mine, other in zip(ours, others, strict=True))


if __name__ == "__main__":
    typer.run(main)
