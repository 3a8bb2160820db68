"""Does the gradient depend on the workers? Measured for every method, on whatever process group this runs in.

A loss alone is compared with its own difference quotient, which knows nothing of our backward passes; a loss over
several workers with the loss alone; and a step of all workers with autograd of the whole batch in one process.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssl_dist import methods
from ssl_dist.collectives import RowCounts, World
from ssl_dist.config import RunConfig
from ssl_dist.data import SamplePlan
from ssl_dist.data.batches import Batches
from ssl_dist.methods import Method, Views
from ssl_dist.training.engine import Engine

STAGES = (0, 1, 2, 3)
QUOTIENT_TOLERANCE = 1e-6  # (L(z + hv) - L(z - hv)) / 2h in float64, h = 1e-5: an error of h^2 and of 1e-16 / h
LOSS_TOLERANCE = 1e-12  # float64 sums in another order
STEP_TOLERANCE = 1e-4  # float32 ones, through a network without kinks (measured on CPUs: 1e-6); a fault is of order 1
_MICRO = 8
_OVERRIDES = {
    "data": {"store": ""},
    "epochs": 1,
    "backbone": {"name": "resnet8", "stem": "half", "width": 8},
    "optim": {"name": "sgd", "momentum": 0.0, "weight_decay": 0.0, "warmup_epochs": 0},
}


_WIDTHS = {"projection_hidden": 64, "projection_dim": 32, "queue": 64, "prototypes": 32}  # at most, where there are any


class Finding(NamedTuple):
    """How a gradient g compares with what it should be, g_one.

    Attributes:
        method: its name.
        part: what was compared, and in which precision.
        workers: that g is from.
        ratio: <g, g_one> / <g_one, g_one>: 1 where they agree; 1 / workers is a gradient averaged and not summed.
        error: |g - g_one| / |g_one|, the largest on any worker.
        tolerance: what rounding explains of it.
    """

    method: str
    part: str
    workers: int
    ratio: float
    error: float
    tolerance: float

    @property
    def exact(self) -> bool:
        return self.error <= self.tolerance  # False for NaN


def examine(world: World, names: Sequence[str] | None = None) -> Iterator[Finding]:
    """For every method, or those named: its loss on one worker, over the first 2, 3, 4 and over all workers with uneven
    shares, and a step of all workers at every ZeRO stage, in float32.

    Every rank calls, in a process group; each yields the findings that it took part in, rank 0 all.
    """
    sizes = [size for size in range(2, world.size + 1) if size <= 4 or size == world.size]
    groups = {size: _group(range(size)) for size in sizes}
    alone = [_group(range(rank, rank + 1)) for rank in range(world.size)][world.rank]
    with torch.backends.cudnn.flags(allow_tf32=False):
        for name in names or methods.names():
            config = config_of(name)
            yield _quotient(config, world, alone)
            for size in sizes:
                if world.rank < size:
                    yield _loss(config, world, size, groups[size], alone)
            yield from _steps(config, world, alone)
    for group in (*(groups[size] for size in sizes if world.rank < size), alone):
        dist.destroy_process_group(group)


def config_of(method: str, num_micro: int = 1) -> RunConfig:
    """The method's own recipe, with a network, a batch and widths that are small enough to be checked."""
    recipe = f"{method.replace('_', '-')}-cifar10"
    given = RunConfig.load(recipe, {"data.store": ""})
    labelled = -(-given.batch.labelled * _MICRO // given.batch.size)  # of each micro-batch: one at least, of some
    batch = {"size": _MICRO * num_micro, "micro": _MICRO, "labelled": labelled * num_micro}
    settings = given.method.model_dump()
    narrow = {key: min(settings[key], most) for key, most in _WIDTHS.items() if settings.get(key) is not None}
    return RunConfig.load(recipe, {**_OVERRIDES, "batch": batch, "method": {**settings, **narrow}})


def smooth(method: Method) -> Method:
    """SiLU for every ReLU and LeakyReLU: where an input crosses zero by a rounding error, their gradient jumps."""
    for module in list(method.modules()):
        for name, child in module.named_children():
            if isinstance(child, (nn.ReLU, nn.LeakyReLU)):
                setattr(module, name, nn.SiLU())
    return method


def _group(ranks: range) -> dist.ProcessGroup:
    group = dist.new_group(list(ranks))
    return cast(dist.ProcessGroup, group)  # a number stands for it where this rank is not in it


def _embeddings(config: RunConfig, count: int, world: World) -> tuple[Method, Tensor]:
    """The method in float64, and ``[count, V, D]`` whose views differ in scale and shift."""
    method = config.initial_method().double().train()
    generator = torch.Generator().manual_seed(config.seed)
    with torch.no_grad():
        shape = method.embed(_random_views(config, count, generator)).shape
    # not what the method embeds, which is much alike before training
    z = torch.randn(shape, generator=generator, dtype=torch.float64)
    z = z * torch.linspace(1, 2, shape[1])[:, None] + torch.linspace(0, 0.5, shape[1])[:, None]
    return method.to(world.device), z.to(world.device)


def _random_views(config: RunConfig, count: int, generator: torch.Generator) -> Views:
    """In float64, of the recipe's sizes; with labels where the method sees some."""
    sizes = [view.size_px or 32 for view in config.augment.views()]
    crops = tuple(
        torch.rand(len(list(alike)), count, 3, size, size, generator=generator, dtype=torch.float64)
        for size, alike in itertools.groupby(sizes)
    )
    labels = torch.arange(count) % 3
    labels[config.num_labelled * count // config.batch.size :] = -1
    return Views(crops, labels)


def _quotient(config: RunConfig, world: World, alone: dist.ProcessGroup) -> Finding:
    """The slope of the loss along a direction, by its gradient and by its values."""
    method, z = _embeddings(config, 9, world)
    direction = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(z)
    direction[:, z.shape[1] - method.num_targets :] = 0
    h = 1e-5
    with torch.no_grad():
        rise = method.loss(z + h * direction, alone) - method.loss(z - h * direction, alone)
    slope = (_gradient_at(method, z, alone) * direction).sum()
    return _compare(config, "loss, difference quotient", 1, None, [slope], [rise / (2 * h)], QUOTIENT_TOLERANCE)


def _loss(config: RunConfig, world: World, size: int, group: dist.ProcessGroup, alone: dist.ProcessGroup) -> Finding:
    count = 4 * size + 1
    method, z = _embeddings(config, count, world)
    rows = World(world.rank, size).share(count)
    mine = _gradient_at(method, z[rows.start : rows.stop], group)
    expected = _gradient_at(method, z, alone)[rows.start : rows.stop]
    learns = slice(0, z.shape[1] - method.num_targets)
    mine, expected = mine[:, learns], expected[:, learns]
    return _compare(config, "loss, float64", size, group, [mine], [expected], LOSS_TOLERANCE)


def _gradient_at(method: Method, z: Tensor, group: dist.ProcessGroup) -> Tensor:
    z = z.detach().requires_grad_()
    return torch.autograd.grad(method.loss(z, group), z)[0]


def _steps(config: RunConfig, world: World, alone: dist.ProcessGroup) -> Iterator[Finding]:
    """What one step of plain SGD at rate 1 takes off the weights, beside the gradient."""
    config = config_of(config.method.name, 2 * world.size + 1)  # one micro-batch more than divides evenly
    images = _RandomImages(config.batch.size)
    expected = _gradient_of_one(config, images, world.device, alone)
    for stage in STAGES:
        engine_section = {"precision": "fp32", "zero_stage": stage}
        config = RunConfig.from_tree({**config.model_dump(), "engine": engine_section}, "exactness")
        method = smooth(config.initial_method()).to(world.device)
        before = {name: p.detach().clone() for name, p in method.named_parameters()}
        engine = Engine(method, config, world)
        engine.step(Batches(SamplePlan(config, images), world, 0, 1).fetch(0), learning_rate=1.0)
        after = engine.state().model
        found = [weight - after[name].to(world.device) for name, weight in before.items()]
        part = f"step, ZeRO {stage}, float32"
        yield _compare(config, part, world.size, dist.group.WORLD, found, expected, STEP_TOLERANCE)


def _gradient_of_one(
    config: RunConfig, images: _RandomImages, device: torch.device, alone: dist.ProcessGroup
) -> list[Tensor]:
    """The whole batch in this process: all micro-batches embedded, one loss, autograd."""
    method = smooth(config.initial_method()).to(device).train()
    batch = Batches(SamplePlan(config, images), World(device=device), 0, 1).fetch(0)
    embedded = []
    for slot in range(batch.num_slots):
        torch.manual_seed(batch.noise_seed(slot))
        embedded.append(method.embed(batch.views(slot, device)))
    return list(torch.autograd.grad(method.loss(torch.cat(embedded), alone), list(method.parameters())))


def _compare(
    config: RunConfig,
    part: str,
    workers: int,
    group: dist.ProcessGroup | None,
    found: list[Tensor],
    expected: list[Tensor],
    tolerance: float,
) -> Finding:
    """Of all ranks of the group (None: this one alone), the one that is furthest off."""
    g, one = (torch.cat([tensor.double().flatten() for tensor in tensors]) for tensors in (found, expected))
    mine = torch.stack([g @ one / (one @ one), (g - one).norm() / one.norm()])[None]
    ranks = RowCounts.of(mine, group).gather(mine) if group else mine  # [W, 2]
    ratio, error = ranks[ranks[:, 1].nan_to_num(torch.inf).argmax()].tolist()
    return Finding(config.method.name, part, workers, ratio, error, tolerance)


class _RandomImages:
    """In place of a store: every worker makes the same."""

    def __init__(self, count: int) -> None:
        self._pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        self.labels = np.arange(count, dtype=np.int32) % 3
        self.shard_rows = np.array([count])

    def __len__(self) -> int:
        return len(self._pixels)

    def gather(self, ids: np.ndarray) -> np.ndarray:
        pixels: np.ndarray = self._pixels[ids]
        return pixels

    def intact(self, ids: np.ndarray) -> np.ndarray:
        return np.ones(len(ids), dtype=bool)

    def prepare(self, now: Collection[int], soon: Collection[int]) -> None:
        """All of them are here."""
