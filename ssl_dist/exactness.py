"""Does the gradient depend on the workers? Measured for every method, on whatever process group this runs in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ssl_dist import methods
from ssl_dist.batches import Batches
from ssl_dist.collectives import Shares, World
from ssl_dist.config import RunConfig
from ssl_dist.engine import Engine
from ssl_dist.methods import Method

STAGES = (0, 1, 2, 3)
LOSS_TOLERANCE = 1e-12  # float64 sums in another order
STEP_TOLERANCE = 1e-4  # float32 ones, through a network (measured on CPUs: 2e-6); a fault is of the order of 1
_MICRO = 8
_TREE = {
    "data": {"store": ""},
    "epochs": 1,
    "backbone": {"name": "resnet8", "stem": "half", "width": 8},
    "augment": {"recipe": "simclr-small"},
    "optim": {"name": "sgd", "momentum": 0.0, "weight_decay": 0.0, "warmup_epochs": 0},
}


class Finding(NamedTuple):
    """How a gradient from several workers compares with that of one process, by plain autograd.

    Attributes:
        method: its name.
        part: "loss": dL/dz of embeddings, in float64. "step": of all parameters through DeepSpeed, in float32.
        zero_stage: of a step.
        ratio: <g, g_one> / <g_one, g_one>, 1 where they agree; 1 / workers is a gradient averaged and not summed.
        error: |g - g_one| / |g_one|.
        tolerance: what rounding explains of it.
    """

    method: str
    part: str
    workers: int
    zero_stage: int | None
    ratio: float
    error: float
    tolerance: float

    @property
    def exact(self) -> bool:
        return self.error <= self.tolerance  # False for NaN


def examine(world: World) -> Iterator[Finding]:
    """Losses over the first 1, 2, 3 .. workers, whose shares are uneven, then steps of all workers at every ZeRO stage.

    Every rank calls, in a process group; each yields the findings that it took part in, rank 0 all.
    """
    sizes = [size for size in range(1, world.size + 1) if size <= 4 or size == world.size]
    groups = {size: _group(range(size)) for size in sizes}
    alone = [_group(range(rank, rank + 1)) for rank in range(world.size)][world.rank]
    for name in methods.names():
        config = RunConfig.from_tree({**_TREE, "method": {"name": name}}, "exactness")
        for size in sizes:
            if world.rank < size:
                yield _loss(config, world, size, groups[size], alone)
        for stage in STAGES:
            yield _step(config, stage, world, alone)


def _group(ranks: range) -> dist.ProcessGroup:
    group = dist.new_group(list(ranks))
    return cast(dist.ProcessGroup, group)  # a number stands for it where this rank is not in it


def _loss(config: RunConfig, world: World, size: int, group: dist.ProcessGroup, alone: dist.ProcessGroup) -> Finding:
    method = config.initial_method().double().train()
    count = 4 * size + 3
    generator = torch.Generator().manual_seed(config.seed)
    with torch.no_grad():
        shape = method.embed(torch.rand(2, count, 3, 32, 32, generator=generator, dtype=torch.float64)).shape
    # not what the method embeds, which is much alike before training; views that differ in scale and shift
    z = torch.randn(shape, generator=generator, dtype=torch.float64)
    z = z * torch.linspace(1, 2, shape[1])[:, None] + torch.linspace(0, 0.5, shape[1])[:, None]
    method, z = method.to(world.device), z.to(world.device)
    rows = World(world.rank, size).share(count)
    mine = _gradient_at(method, z[rows.start : rows.stop], group)
    found = Shares.of(mine, group).gather(mine)
    expected = _gradient_at(method, z, alone)
    return _compare(config, "loss", size, None, [found], [expected], tolerance=LOSS_TOLERANCE)


def _gradient_at(method: Method, z: Tensor, group: dist.ProcessGroup) -> Tensor:
    z = z.detach().requires_grad_()
    return torch.autograd.grad(method.loss(z, group), z)[0]


def _step(config: RunConfig, stage: int, world: World, alone: dist.ProcessGroup) -> Finding:
    """What one step of plain SGD at rate 1 takes off the weights, beside the gradient."""
    sizes = {"size": _MICRO * (2 * world.size + 1), "micro": _MICRO}  # one micro-batch more than divides evenly
    engine = {"precision": "fp32", "zero_stage": stage}
    config = RunConfig.from_tree({**config.model_dump(), "batch": sizes, "engine": engine}, "exactness")
    images = _RandomImages(config.batch.size)
    method = config.initial_method().to(world.device)
    before = [p.detach().clone() for p in method.parameters()]
    expected = _gradient_of_one(config, images, world.device, alone)
    engine_ = Engine(method, config, world)
    engine_.step(Batches(images, config, world, 0, 1).fetch(0), learning_rate=1.0)
    after = engine_.state().model
    names = [name for name, _ in method.named_parameters()]
    found = [old - after[name].to(world.device) for name, old in zip(names, before, strict=True)]
    return _compare(config, "step", world.size, stage, found, expected, tolerance=STEP_TOLERANCE)


def _gradient_of_one(
    config: RunConfig, images: _RandomImages, device: torch.device, alone: dist.ProcessGroup
) -> list[Tensor]:
    """The whole batch in this process: all micro-batches embedded, one loss, autograd."""
    method = config.initial_method().to(device).train()
    batch = Batches(images, config, World(device=device), 0, 1).fetch(0)
    z = torch.cat([method.embed(batch.views(slot, device)) for slot in range(batch.num_slots)])
    return list(torch.autograd.grad(method.loss(z, alone), list(method.parameters())))


def _compare(
    config: RunConfig,
    part: str,
    workers: int,
    stage: int | None,
    found: list[Tensor],
    expected: list[Tensor],
    tolerance: float,
) -> Finding:
    g, one = (torch.cat([tensor.double().flatten() for tensor in tensors]) for tensors in (found, expected))
    ratio, error = float(g @ one / (one @ one)), float((g - one).norm() / one.norm())
    return Finding(config.method.name, part, workers, stage, ratio, error, tolerance)


class _RandomImages:
    """In place of a store: every worker makes the same."""

    def __init__(self, count: int) -> None:
        self._pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._pixels)

    def gather(self, ids: np.ndarray) -> np.ndarray:
        pixels: np.ndarray = self._pixels[ids]
        return pixels
