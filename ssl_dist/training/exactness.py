"""Checks that gradients do not depend on the number of workers, for every method, in any process group.

Three gradients are compared: that of the loss on one worker with a difference quotient, which uses no backward pass of
ours; that of the loss on several workers with that on one; and the update of a whole step of all workers with autograd
of the whole batch in one process.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssl_dist import methods
from ssl_dist.collectives import Group, RowCounts, World
from ssl_dist.config import RunConfig
from ssl_dist.data import SamplePlan
from ssl_dist.data.batches import Batches
from ssl_dist.methods import Method, Views
from ssl_dist.training.engine import Engine

STAGES = (0, 1, 2, 3)
QUOTIENT_TOLERANCE = 1e-6  # (L(z + hv) - L(z - hv)) / 2h in float64, h = 1e-5: an error of h^2 and of 1e-16 / h
LOSS_TOLERANCE = 1e-12  # sums in float64, in another order
STEP_TOLERANCE = 1e-4  # sums in float32, through a network without kinks (measured on CPUs: 1e-6); faults are near 1
_MICRO_BATCH = 8
_OVERRIDES = {
    "data": {"store": ""},
    "epochs": 1,
    "backbone": {"name": "resnet8", "stem": "half", "width": 8},
    "optim": {"name": "sgd", "momentum": 0.0, "weight_decay": 0.0, "warmup_epochs": 0},
}
_LARGEST = {"projection_hidden": 64, "projection_dim": 32, "queue": 64, "prototypes": 32}  # of a method's settings


class Finding(NamedTuple):
    """The comparison of a gradient g with the expected gradient g_one.

    Attributes:
        method: name of the method.
        part: the gradient that was compared, and its precision.
        workers: number of workers that computed g.
        ratio: <g, g_one> / <g_one, g_one>: 1 if they agree; 1 / workers if g was averaged instead of summed.
        error: |g - g_one| / |g_one|, the largest on any worker.
        tolerance: the largest error that rounding explains.
    """

    method: str
    part: str
    workers: int
    ratio: float
    error: float
    tolerance: float

    @property
    def exact(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.error <= self.tolerance  # False for NaN


def examine(world: World, names: Sequence[str] | None = None) -> Iterator[Finding]:
    """Check every method, or those named, and yield a finding for each gradient.

    The loss is checked on one worker, and on the first 2, 3, 4 and on all workers with unequal numbers of rows; a step
    is checked on all workers at every ZeRO stage. Every rank calls, in a process group. Rank 0 yields all findings, the
    others those in which they took part.
    """
    sizes = [size for size in range(2, world.size + 1) if size <= 4 or size == world.size]
    groups: dict[int, Any] = {size: dist.new_group(list(range(size))) for size in sizes}  # numbers on ranks outside
    alone: Any = [dist.new_group([rank]) for rank in range(world.size)][world.rank]
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
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
    """Load the method's own recipe, with a network, a batch and widths that are small enough to check."""
    recipe = f"{method.replace('_', '-')}-cifar10"
    given = RunConfig.load(recipe, {"data.store": ""})
    # labelled images of a micro-batch: at least one if the recipe has any
    labelled = -(-given.batch.labelled * _MICRO_BATCH // given.batch.size)
    batch = {"size": _MICRO_BATCH * num_micro, "micro": _MICRO_BATCH, "labelled": labelled * num_micro}
    batch["keep_graphs"] = 1  # a worker with several micro-batches embeds one once, the others twice
    settings = given.method.model_dump()
    narrow = {key: min(settings[key], largest) for key, largest in _LARGEST.items() if settings.get(key) is not None}
    return RunConfig.load(recipe, {**_OVERRIDES, "batch": batch, "method": {**settings, **narrow}})


def smooth(method: Method) -> Method:
    """Replace every ReLU and LeakyReLU by SiLU.

    Where an input crosses zero by a rounding error, the gradient of a ReLU jumps; that of SiLU does not.
    """
    for module in list(method.modules()):
        for name, child in module.named_children():
            if isinstance(child, (nn.ReLU, nn.LeakyReLU)):
                setattr(module, name, nn.SiLU())
    return method


def _random_outputs(config: RunConfig, count: int, world: World) -> tuple[Method, Tensor]:
    """Return the method in float64, and random outputs ``[count, V, D]`` whose views differ in scale and shift."""
    method = config.initial_method().double().train()
    generator = torch.Generator().manual_seed(config.seed)
    with torch.no_grad():
        shape = method.embed(_random_views(config, count, generator)).shape
    # random numbers, because the outputs of random weights are nearly equal
    z = torch.randn(shape, generator=generator, dtype=torch.float64)
    z = z * torch.linspace(1, 2, shape[1])[:, None] + torch.linspace(0, 0.5, shape[1])[:, None]
    return method.to(world.device), z.to(world.device)


def _random_views(config: RunConfig, count: int, generator: torch.Generator) -> Views:
    """Return views in float64 of the recipe's sizes, with labels if the method sees any."""
    sizes = [view.size_px or 32 for view in config.augment.views()]
    crops = tuple(
        torch.rand(len(list(alike)), count, 3, size, size, generator=generator, dtype=torch.float64)
        for size, alike in itertools.groupby(sizes)
    )
    labels = torch.arange(count) % 3
    labels[config.num_labelled * count // config.batch.size :] = -1
    return Views(crops, labels)


def _quotient(config: RunConfig, world: World, alone: Group) -> Finding:
    """Compare the slope of the loss along a direction, by its gradient, with the slope by its values."""
    method, z = _random_outputs(config, 9, world)
    direction = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(z)
    direction[:, z.shape[1] - method.num_targets :] = 0
    h = 1e-5
    with torch.no_grad():
        rise = method.loss(z + h * direction, alone) - method.loss(z - h * direction, alone)
    slope = (_gradient_at(method, z, alone) * direction).sum()
    return _compare(config, "loss, difference quotient", None, [slope], [rise / (2 * h)], QUOTIENT_TOLERANCE)


def _loss(config: RunConfig, world: World, size: int, group: Group, alone: Group) -> Finding:
    """Compare the gradient of the loss over ``size`` workers with that on one worker."""
    count = 4 * size + 1  # one worker has more rows than the others
    method, z = _random_outputs(config, count, world)
    rows = World(world.rank, size).share(count)
    learns = z.shape[1] - method.num_targets
    mine = _gradient_at(method, z[rows.start : rows.stop], group)[:, :learns]
    expected = _gradient_at(method, z, alone)[rows.start : rows.stop, :learns]
    return _compare(config, "loss, float64", group, [mine], [expected], LOSS_TOLERANCE)


def _gradient_at(method: Method, z: Tensor, group: Group) -> Tensor:
    z = z.detach().requires_grad_()
    return torch.autograd.grad(method.loss(z, group), z)[0]


def _steps(config: RunConfig, world: World, alone: Group) -> Iterator[Finding]:
    """Compare the change of the weights in one step of plain SGD, at learning rate 1, with the gradient."""
    config = config_of(config.method.name, 2 * world.size + 1)  # two for each worker, and one more
    images = _RandomImages(config.batch.size)
    expected = _gradient_of_one(config, images, world.device, alone)
    for stage in STAGES:
        engine_config = config.engine.model_copy(update={"precision": "fp32", "zero_stage": stage})
        config = config.model_copy(update={"engine": engine_config})
        method = smooth(config.initial_method()).to(world.device)
        before = {name: p.detach().clone() for name, p in method.named_parameters()}
        engine = Engine(method, config, world)
        engine.step(Batches(SamplePlan(config, images), world, 0, 1).fetch(0), learning_rate=1.0)
        after = engine.state().model
        found = [weight - after[name].to(world.device) for name, weight in before.items()]
        yield _compare(config, f"step, ZeRO {stage}, float32", dist.group.WORLD, found, expected, STEP_TOLERANCE)


def _gradient_of_one(config: RunConfig, images: _RandomImages, device: torch.device, alone: Group) -> list[Tensor]:
    """Return the gradient of the whole batch in this process: embed all micro-batches, take one loss, use autograd."""
    method = smooth(config.initial_method()).to(device).train()
    batch = Batches(SamplePlan(config, images), World(device=device), 0, 1).fetch(0)
    embedded = []
    for slot in range(batch.num_slots):
        torch.manual_seed(batch.noise_seed(slot))
        embedded.append(method.embed(batch.views(slot, device)))
    return list(torch.autograd.grad(method.loss(torch.cat(embedded), alone), list(method.parameters())))


def _compare(
    config: RunConfig, part: str, group: Group, found: list[Tensor], expected: list[Tensor], tolerance: float
) -> Finding:
    """Compare two gradients on each rank of the group (None: this rank alone), and return the worst finding."""
    g, one = (torch.cat([tensor.double().flatten() for tensor in tensors]) for tensors in (found, expected))
    mine = torch.stack([g @ one / (one @ one), (g - one).norm() / one.norm()])[None]
    ranks = RowCounts.of(mine, group).gather(mine) if group else mine  # [W, 2]
    ratio, error = ranks[ranks[:, 1].nan_to_num(torch.inf).argmax()].tolist()
    workers = dist.get_world_size(group) if group else 1
    return Finding(config.method.name, part, workers, ratio, error, tolerance)


class _RandomImages:
    """A stand-in for a store, with random images that are the same on every worker."""

    def __init__(self, count: int) -> None:
        self._pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        self.labels = np.arange(count, dtype=np.int32) % 3
        self.shard_rows = np.array([count])

    def __len__(self) -> int:
        return len(self._pixels)

    def gather(self, ids: np.ndarray) -> np.ndarray:
        return self._pixels.take(ids, axis=0)

    def intact(self, ids: np.ndarray) -> np.ndarray:
        return np.ones(len(ids), dtype=bool)

    def prepare(self, now: Collection[int], soon: Collection[int]) -> None:
        """Do nothing: all images are in memory."""
