"""A guard against slower code: a few ratios of ours to a peer, beside the committed ones of the same kind of CPU.

    python -m benchmarks.quick            # make bench-quick; exit code 1 and the names of ratios that fell
    python -m benchmarks.quick --write    # write these ratios into quick.json, to be committed

Both sides of a ratio take turns on one thread, in CPU seconds of this process. A ratio has fallen if all rounds of now
lie below all committed ones: its own noise, then and now, does not reach that far. The bare loop has our views, loss
and backbone, so its ratio is that of what the product adds to a step.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from PIL import Image

from benchmarks import contenders, transforms
from benchmarks.cuda import synthetic
from benchmarks.cuda.end_to_end import config_of
from benchmarks.cuda.loops import Bare, Ours
from benchmarks.end_to_end import NETS
from ssl_dist import augment
from ssl_dist.evaluate.knn import nearest
from ssl_dist.machine import cpu_name
from ssl_dist.store import ImageStore

COMMITTED = Path(__file__).with_suffix(".json")
_CPU = torch.device("cpu")
_LEAST_S = 0.2  # CPU time of one side of a round

Work = Callable[[], Any]


class Pair(NamedTuple):
    """Two ways to do the same work; the ratio is the peer's time by ours, so more is better for us."""

    name: str
    ours: Work
    peer: Work


def main(
    rounds: Annotated[int, typer.Option(min=2, help="Turns of each side.")] = 7,
    write: Annotated[bool, typer.Option("--write", help="Write the ratios of this kind of CPU into the file.")] = False,
    file: Annotated[Path, typer.Option(help="The committed ratios.")] = COMMITTED,
    only: Annotated[str | None, typer.Option(help="Measure pairs whose name has this.")] = None,
) -> None:
    """Measure the ratios, print them as JSON lines, and name those that fell."""
    torch.set_num_threads(1)
    committed = json.loads(file.read_text()) if file.exists() else {}
    known, measured, fallen = committed.get(cpu_name(), {}), dict[str, list[float]](), list[str]()
    with tempfile.TemporaryDirectory() as folder:
        for pair in (one for one in pairs(Path(folder)) if only is None or only in one.name):
            ratios = measured[pair.name] = sorted(_ratios(pair, rounds))
            before = known.get(pair.name)
            if before and max(ratios) < min(before):
                fallen.append(f"{pair.name} fell from {statistics.median(before):.2f} to {_text(ratios)}")
            then = {"committed": _text(before)} if before else {}
            print(json.dumps({"ratio": pair.name, "now": _text(ratios), **then}), flush=True)
    if write:
        committed[cpu_name()] = known | measured
        file.write_text(json.dumps(committed, indent=1) + "\n")
    elif not known:
        print(f"no ratios of this CPU ({cpu_name()}) are committed: --write does it")
    else:
        fallen += [f"{name} was not measured" for name in known if name not in measured and (only or "") in name]
        for line in fallen:
            print(line)
        raise typer.Exit(1 if fallen or not measured else 0)


def pairs(folder: Path) -> Iterator[Pair]:
    """Make the pairs one after the other; a store goes into the folder."""
    generator = torch.Generator().manual_seed(0)
    z_a, z_b = (torch.randn(2048, 128, generator=generator, requires_grad=True) for _ in range(2))
    loss = {name: partial(_gradient, contenders.LOSSES[name], z_a, z_b) for name in ("ours", "dense autograd")}
    yield Pair("NT-Xent of 4,096 rows: dense autograd by ours", loss["ours"], loss["dense autograd"])

    pixels = synthetic.images(4096, 32)
    some, ids = pixels[:64], torch.arange(64)
    pictures, make = [Image.fromarray(one) for one in some], transforms.torchvision(32)
    policy = transforms.policy_name(32)
    yield Pair(
        "views of 32 px: torchvision by ours",
        lambda: augment.views(torch.from_numpy(some), ids, seed=0, epoch=0, recipe=policy),
        lambda: [make(picture) for picture in pictures],
    )

    synthetic.write_store(folder / "store", pixels)
    store, rows = ImageStore(folder / "store"), np.random.default_rng(0).permutation(len(pixels))[:256]
    store.gather(rows)  # checks the shards
    yield Pair("256 images of a store: NumPy by ours", lambda: store.gather(rows), lambda: pixels[rows])

    bank, queries = torch.randn(20_000, 128, generator=generator), torch.randn(500, 128, generator=generator)
    search = partial(nearest, bank, queries, 20)
    yield Pair("20 nearest of 20,000: float64 product by ours", search, _plain(bank, queries))

    for name in ("convnet-32", "resnet8-32"):
        net = NETS[name]._replace(batch=128, micro=128)
        config = config_of(net, folder / "store", _CPU, {"engine.precision": "fp32"})
        ours, bare = Ours(config, _CPU).steps(), Bare(config, pixels, _CPU, compiled=False).steps()
        yield Pair(f"a step of {name}: bare loop by ours", partial(next, ours), partial(next, bare))


def _gradient(loss: contenders.Loss, z_a: torch.Tensor, z_b: torch.Tensor) -> None:
    torch.autograd.grad(loss(z_a, z_b, 0.1), (z_a, z_b))


def _plain(bank: torch.Tensor, queries: torch.Tensor) -> Work:
    """Return a search by one matrix product."""
    normalize = torch.nn.functional.normalize
    return lambda: (normalize(queries.double(), dim=1) @ normalize(bank.double(), dim=1).T).topk(20)


def _ratios(pair: Pair, rounds: int) -> Iterator[float]:
    """Yield the ratio of each round; the first of each side, which also chooses kernels, does not count."""
    times = {work: max(1, int(_LEAST_S / _seconds(work, 2))) for work in (pair.ours, pair.peer)}
    for _ in range(rounds):
        ours, peer = (_seconds(work, times[work]) for work in (pair.ours, pair.peer))
        yield round(peer / ours, 4)


def _seconds(work: Work, times: int) -> float:
    """Return the CPU time of one of several calls."""
    began = time.process_time()
    for _ in range(times):
        work()
    return max(1e-9, time.process_time() - began) / times


def _text(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    typer.run(main)
