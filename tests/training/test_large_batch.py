"""A global batch of 8192 in micro-batches of 256: memory for one micro-batch, the gradient of the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.memory import peak_of_training, random_store
from ssl_dist.losses import nt_xent
from tests.double import double_update, one_shot_gradient, worst_difference
from tests.helpers import small_config

BATCH = 8192


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_store(tmp_path_factory.mktemp("large"), BATCH)


@pytest.mark.slow
def test_memory_is_that_of_the_micro_batch(store: Path) -> None:
    assert peak_of_training(store, BATCH) <= 1.15 * peak_of_training(store, 256)


@pytest.mark.slow
def test_cached_gradient_is_the_one_shot_gradient(store: Path) -> None:
    """Compare with one graph over 32 micro-batches, which needs about 10 GB."""
    plain = {"name": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "warmup_epochs": 0}
    config = small_config(store, optim=plain, batch={"size": BATCH, "micro": 256})
    found = double_update(0, 1, config)
    expected = one_shot_gradient(config, lambda z_a, z_b: nt_xent(z_a, z_b, temperature=0.2))
    assert worst_difference(found, expected) <= 1e-12
