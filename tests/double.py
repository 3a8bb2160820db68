"""Helpers that train in float64 through DeepSpeed, which knows half and single precision only."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from ssl_dist import augment
from ssl_dist.collectives import World
from ssl_dist.config import RunConfig
from ssl_dist.data import SamplePlan, permutation
from ssl_dist.data.batches import Batches
from ssl_dist.methods import Method, Views
from ssl_dist.store import ImageStore
from ssl_dist.training.engine import Engine
from tests.helpers import smooth_method

_MODULES = ("engine", "base_optimizer", "utils", "zero.stage_1_and_2", "zero.stage3", "zero.partition_parameters")


class _Torch:
    """The module torch, except that its name float32 stands for float64."""

    def __getattr__(self, name: str) -> Any:
        return torch.float64 if name in ("float32", "float") else getattr(torch, name)


@contextlib.contextmanager
def deepspeed_in_double() -> Iterator[None]:
    """Let DeepSpeed's weights, gradient buffers and collectives be float64: the same code rounds by 1e-16, not 6e-8."""
    with contextlib.ExitStack() as stack:
        for name in _MODULES:
            module = importlib.import_module(f"deepspeed.runtime.{name}")
            stack.enter_context(mock.patch.object(module, "torch", _Torch()))
        accelerator = importlib.import_module("deepspeed.accelerator").get_accelerator()
        stack.enter_context(mock.patch.object(accelerator, "supported_dtypes", return_value=[torch.float64]))
        yield


def double_method(config: RunConfig) -> Method:
    """Return the initial method in float64; it takes float32 views."""
    method = smooth_method(config).double()
    method.register_forward_pre_hook(
        lambda _, arguments: (Views(tuple(part.double() for part in arguments[0].crops), arguments[0].labels),)
    )
    return method


def double_update(rank: int, size: int, config: RunConfig) -> dict[str, Tensor]:
    """Return what one step of the engine at rate 1 subtracts from each weight: with plain SGD, the gradient."""
    method = double_method(config)
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    world = World.current()
    with deepspeed_in_double():
        engine = Engine(method, config, world)
        engine.step(Batches(SamplePlan(config, ImageStore(config.data.store)), world, 0, 1).fetch(0), learning_rate=1.0)
        after = engine.state().model
    return {name: weight - after[name] for name, weight in before.items()}


def one_shot_gradient(config: RunConfig, loss: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
    """Compute the gradient by autograd from one loss over all micro-batches, whose graphs are all kept."""
    method, images = double_method(config).train(), ImageStore(config.data.store)
    ids, _ = permutation.stream(config.seed, 0, config.batch.size, len(images))
    embedded = []
    for part in torch.from_numpy(ids).split(config.batch.micro):
        pixels = torch.from_numpy(images.gather(part.numpy()))
        views = augment.views(pixels, part, seed=config.seed, epoch=0, recipe=config.augment.views())
        embedded.append(method(Views((views,), torch.full_like(part, -1))))
    z_a, z_b = torch.cat(embedded).unbind(1)
    loss(z_a, z_b).backward()
    return {name: p.grad for name, p in method.named_parameters() if p.grad is not None}


def worst_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest difference of a tensor, relative to its norm; NaN if a difference is NaN."""
    assert found.keys() == expected.keys()
    return float(
        torch.stack([(found[name] - expected[name]).norm() / expected[name].norm() for name in expected]).max()
    )
