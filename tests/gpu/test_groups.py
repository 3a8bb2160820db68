"""Groups of workers on a GPU: NCCL with one rank, and two ranks that share one device over gloo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.runs import Processes, moved, relative_over, train_on
from tests.helpers import small_config

pytestmark = pytest.mark.gpu
STEPS = 6
BOUND = 1e-4  # float32 rounds to 6e-8, and six steps multiply that; a lost micro-batch changes the loss by 1e-1


def assert_same(found: Any, expected: Any, start: dict[str, torch.Tensor]) -> None:
    assert found.losses == pytest.approx(expected.losses, rel=BOUND)
    assert found.grad_norms == pytest.approx(expected.grad_norms, rel=10 * BOUND)
    assert relative_over(moved(start, found.state.model), moved(start, expected.state.model)) <= 10 * BOUND


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_one_rank_over_the_devices_own_backend(
    zero_stage: int, small_store: Path, processes: Processes, device: torch.device
) -> None:
    config = small_config(small_store, engine__zero_stage=zero_stage)
    expected = train_on(0, 1, str(device), small_config(small_store, engine__zero_stage=0), 0, STEPS)
    backend = "nccl" if device.type == "cuda" else "gloo"
    [found] = processes(1, backend).run(train_on, str(device), config, 0, STEPS)
    assert_same(found, expected, config.initial_method().state_dict())


@pytest.mark.parametrize("method", [{}, {"method": {"name": "vicreg", "projection_hidden": 64, "projection_dim": 16}}])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_two_ranks_on_one_device(
    zero_stage: int, method: dict[str, Any], small_store: Path, processes: Processes, device: torch.device
) -> None:
    """Share out three micro-batches: one rank has two, the other has one and an empty slot."""
    config = small_config(small_store, engine__zero_stage=zero_stage, **method)
    expected = train_on(0, 1, str(device), small_config(small_store, engine__zero_stage=0, **method), 0, STEPS)
    first, second = processes(2).run(train_on, str(device), config, 0, STEPS)
    assert first.losses == second.losses, "the loss is the same on every worker, bit for bit"
    assert_same(first, expected, config.initial_method().state_dict())
