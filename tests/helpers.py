"""Helpers that train a few steps on a small store, inside gloo workers."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from torch import Tensor

from ssl_dist.checkpoint import Checkpoints, State
from ssl_dist.collectives import World
from ssl_dist.config import DataFacts, ResolvedConfig, RunConfig
from ssl_dist.config.overrides import put_override
from ssl_dist.data import SamplePlan, open_store, resolve
from ssl_dist.data.batches import Batches
from ssl_dist.methods import Method
from ssl_dist.training.engine import Engine
from ssl_dist.training.exactness import smooth

RECIPE = """
epochs: 100
backbone: {name: resnet8, stem: half, width: 8}
method: {name: simclr, temperature: 0.2, projection_hidden: 64, projection_dim: 16}
augment: {recipe: simclr-small, jitter_strength: 0.2}
batch: {size: 12, micro: 4, keep_graphs: 1}  # so a worker with several embeds one once, the others twice
optim: {name: sgd, lr: 0.005, weight_decay: 0.001, warmup_epochs: 0, clip_norm: 3.0}
engine: {precision: fp32, zero_stage: 1}
"""


def small_config(store: Path, **overrides: Any) -> RunConfig:
    """Return a config of three micro-batches of four images a step, fp32; ``overrides`` have __ for the dots of keys.

    No file is written, because several workers call this for one store at the same time.
    """
    tree = yaml.safe_load(RECIPE)
    for key, value in {"data__store": str(store), **overrides}.items():
        put_override(tree, key.replace("__", "."), value)
    return RunConfig.from_tree(tree, "small_config")


def resolved_config(store: Path, **overrides: Any) -> ResolvedConfig:
    """Return ``small_config`` with the facts about its data; the store must exist."""
    return resolve(small_config(store, **overrides)).config


def with_facts(config: RunConfig, num_samples: int, size_px: int = 16) -> ResolvedConfig:
    """Return the config of a run on a store that does not exist."""
    facts = DataFacts(num_images=num_samples, num_samples=num_samples, image_shape=(size_px, size_px, 3))
    return ResolvedConfig.from_tree({**config.model_dump(), "facts": facts}, "with_facts")


def smooth_method(config: RunConfig) -> Method:
    """Return the initial method with SiLU in place of every ReLU.

    A ReLU whose input crosses zero by a rounding error changes the gradient by a whole unit's contribution: weights
    that were moved by 1e-7 then differ by 1e-3 after a few steps of one worker (measured). The tests check that the
    number of workers does not change the arithmetic, so they need a network whose gradient has no jumps.
    """
    return smooth(config.initial_method())


def grid(*axes: Sequence[Any], slow: Collection[Any] = ()) -> list[Any]:
    """Return all combinations, as parameters of a test; most of them are slow.

    Every value has a combination that is not slow. Of three axes, so has every pair of values of the first two.

    Args:
        slow: values of the first axis of which all combinations are slow.
    """
    found = []
    for one in itertools.product(*(list(enumerate(axis)) for axis in axes)):
        is_slow = sum(number for number, _ in one) % len(axes[-1]) or one[0][1] in slow
        found.append(pytest.param(*(value for _, value in one), marks=[pytest.mark.slow] if is_slow else []))
    return found


class Trace(NamedTuple):
    losses: list[float]
    grad_norms: list[float]
    state: State


def train(
    rank: int,
    size: int,
    config: RunConfig,
    first_step: int,
    last_step: int,
    resume: Path | None = None,
    total_steps: int | None = None,
    device: str = "cpu",
) -> Trace:
    """Train the steps first_step .. last_step - 1, from the initial weights or the newest checkpoint in ``resume``.

    The run has ``total_steps`` steps; without it, ``last_step``.
    """
    found = Checkpoints(resume).newest() if resume else None
    assert (found.step if found else 0) == first_step
    world = World.current(torch.device(device))
    engine = Engine(smooth_method(config), config, world, found.load() if found else None)
    batches = Batches(SamplePlan(config, open_store(config.data)), world, first_step, total_steps or last_step)
    results, snapshot = [], None
    for batch in itertools.islice(batches, last_step - first_step):
        results.append(engine.step(batch, config.optim.lr))
        snapshot = snapshot or engine.state()
    return Trace([r.loss for r in results], [r.grad_norm for r in results], engine.state(into=snapshot))


def save(state: State, run: Path, step: int, config: RunConfig) -> None:
    Checkpoints(run).save(step, resolve(config).config, state)


def save_scored(run: Path, store: Path, scores: Mapping[int, float]) -> None:
    """Write a run's checkpoints by step, with these scores; the weights of each are those of its step as the seed."""
    config = resolved_config(store, probe=None, checkpoint__keep=len(scores))
    for step, score in scores.items():
        method = config.model_copy(update={"seed": step}).initial_method()
        Checkpoints(run).save(step, config, State(method.state_dict(), {}), score)


def differences(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Return the names of the tensors that are not equal bit for bit."""
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]
