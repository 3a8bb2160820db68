"""A run resumes with any number of workers: the same samples, the same losses, no conversion."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from ssl_dist.checkpoint import Checkpoints, State
from ssl_dist.collectives import World
from ssl_dist.config import RunConfig
from ssl_dist.data import SamplePlan
from ssl_dist.data.batches import Batches
from ssl_dist.store import ImageStore
from ssl_dist.training.engine import Engine
from tests.gloo import GlooPool
from tests.helpers import differences, save, small_config, smooth_method

Pools = Callable[[int], GlooPool]
MORE = [(1, 1), (1, 3), (2, 1), (3, 2), (3, 3)]
STEPS = 9  # of 12 images: two epochs of 51, and six images


class Part(NamedTuple):
    losses: list[float]
    used: list[tuple[int, int]]  # (epoch, sample) of this worker
    state: State


def train(rank: int, size: int, config: RunConfig, steps: range, resume: Path | None) -> Part:
    world = World.current()
    found = Checkpoints(resume).newest() if resume else None
    engine = Engine(smooth_method(config), config, world, found.load() if found else None)
    losses, used = [], []
    for batch in Batches(SamplePlan(config, ImageStore(config.data.store)), world, steps.start, steps.stop):
        losses.append(engine.step(batch, config.optim.lr).loss)
        used += list(zip(batch.epochs.tolist(), batch.ids.tolist(), strict=True))
    return Part(losses, used, engine.state())


@pytest.fixture(scope="module")
def undisturbed(gloo: Pools, small_store: Path) -> Callable[[int], Part]:
    known: dict[int, Part] = {}

    def run(workers: int) -> Part:
        if workers not in known:
            known[workers] = gloo(workers).run(train, small_config(small_store), range(STEPS), None)[0]
        return known[workers]

    return run


@pytest.mark.parametrize(
    ("before", "after"),
    [(1, 2), (2, 2), (2, 3), (3, 1), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in MORE)],
)
def test_a_run_resumes_with_another_number_of_workers(
    gloo: Pools, small_store: Path, tmp_path: Path, undisturbed: Callable[[int], Part], before: int, after: int
) -> None:
    """Resume at a random step.

    The bound is that of test_engine.py: sums in another order round differently, and steps multiply the difference.
    With the same number of workers nothing is rounded differently.
    """
    config = small_config(small_store)
    step = int(np.random.default_rng(10 * before + after).integers(1, STEPS))
    begun = gloo(before).run(train, config, range(step), None)
    save(begun[0].state, tmp_path, step, config)
    rest = gloo(after).run(train, config, range(step, STEPS), tmp_path)

    losses, expected = begun[0].losses + rest[0].losses, undisturbed(before).losses
    assert max(abs(a - b) / b for a, b in zip(losses, expected, strict=True)) <= 1e-5
    used = Counter(pair for part in (*begun, *rest) for pair in part.used)
    assert set(used.values()) == {1}, "a sample was used twice"
    assert {pair for pair in used if pair[0] < 2} == {(epoch, sample) for epoch in range(2) for sample in range(51)}
    assert len([pair for pair in used if pair[0] == 2]) == 6
    if before == after:
        assert losses == expected
        for part in ("model", "optimizer"):
            assert not differences(getattr(rest[0].state, part), getattr(undisturbed(before).state, part))


def test_workers_are_a_number_or_a_range(small_store: Path) -> None:
    def workers(value: Any) -> tuple[int, int]:
        found = small_config(small_store, cluster__workers=value).cluster.workers
        return found.min, found.max

    assert workers(3) == (3, 3)
    assert workers({"min": 1, "max": 4}) == (1, 4)
