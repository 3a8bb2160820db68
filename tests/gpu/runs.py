"""Training that the tests on a GPU compare: in float64 on the CPU, and on the tested device."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ssl_dist.collectives import World
from ssl_dist.config import RunConfig
from ssl_dist.data import SamplePlan, open_store
from ssl_dist.data.batches import Batches
from ssl_dist.training.engine import Engine
from tests.double import deepspeed_in_double, double_method
from tests.gloo import GlooPool
from tests.helpers import Trace, train


class Processes(Protocol):
    """Groups of processes by size and backend."""

    def __call__(self, size: int, backend: str = "gloo", *, on_cpu: bool = False) -> GlooPool: ...


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Compute float32 products and convolutions in float32: TF32 would round their factors to 1e-3."""
    products = torch.backends.cuda.matmul
    before, products.allow_tf32 = products.allow_tf32, False
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        products.allow_tf32 = before


def train_on(
    rank: int,
    size: int,
    device: str,
    config: RunConfig,
    first_step: int,
    last_step: int,
    resume: Path | None = None,
    total_steps: int | None = None,
) -> Trace:
    """Train as ``tests.helpers.train`` does, in full precision."""
    with full_precision():
        return train(rank, size, config, first_step, last_step, resume, total_steps, device=device)


def train_in_double(rank: int, size: int, config: RunConfig, steps: int) -> Trace:
    """Train the first steps in float64 on the CPU."""
    world = World.current()
    with deepspeed_in_double():
        engine = Engine(double_method(config), config, world)
        batches = Batches(SamplePlan(config, open_store(config.data)), world, 0, steps)
        results = [engine.step(batch, config.optim.lr) for batch in itertools.islice(batches, steps)]
        return Trace([r.loss for r in results], [r.grad_norm for r in results], engine.state())


def relative(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference, relative to what is expected, in float64 on the CPU."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return float((found - expected).norm() / expected.norm())


def relative_over(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the norm of the difference of all floating tensors together, relative to what is expected."""
    assert found.keys() == expected.keys()
    names = [name for name, tensor in expected.items() if tensor.is_floating_point()]
    flat = [torch.cat([tensors[name].double().flatten() for name in names]) for tensors in (found, expected)]
    return relative(*flat)


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what training has taken off each floating tensor, in float64."""
    return {name: before[name].double() - after[name].double() for name in before if before[name].is_floating_point()}
