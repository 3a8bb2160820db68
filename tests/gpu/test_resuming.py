"""Runs on a GPU resume bit for bit, and go on elsewhere: on the CPU, and back on the GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.runs import Processes, moved, relative_over, train_on
from tests.helpers import differences, save, small_config

pytestmark = pytest.mark.gpu
ADAMW = {"optim": {"name": "adamw", "lr": 1e-3, "warmup_epochs": 0}}
MOCO = {
    "method": {"name": "moco", "projection_hidden": 64, "projection_dim": 16, "queue": 24, "batch_norm_groups": 2},
    "augment": {"recipe": "mocov2"},
}


@pytest.mark.parametrize(
    ("zero_stage", "settings"),
    [(0, {}), (1, ADAMW), (2, {}), (3, ADAMW), (1, MOCO), (1, {"engine__precision": "bf16"})],
)
def test_six_steps_are_three_and_three_bit_for_bit(
    zero_stage: int, settings: dict[str, Any], small_store: Path, tmp_path: Path, device: torch.device
) -> None:
    config = small_config(small_store, engine__zero_stage=zero_stage, engine__deterministic=True, **settings)
    whole = train_on(0, 1, str(device), config, 0, 6)
    begun = train_on(0, 1, str(device), config, 0, 3, None, 6)
    assert begun.losses == whole.losses[:3], "the same steps give the same bits"
    save(begun.state, tmp_path, 3, config)
    rest = train_on(0, 1, str(device), config, 3, 6, tmp_path)
    assert rest.losses == whole.losses[3:]
    assert differences(rest.state.model, whole.state.model) == []
    assert differences(rest.state.optimizer, whole.state.optimizer) == []


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_the_number_of_kept_graphs_changes_no_bit(zero_stage: int, small_store: Path, device: torch.device) -> None:
    engine = {"engine__zero_stage": zero_stage, "engine__deterministic": True}
    none, two, as_many_as_fit = (
        train_on(0, 1, str(device), small_config(small_store, batch__keep_graphs=number, **engine), 0, 3)
        for number in (0, 2, "auto")
    )
    for trace in (two, as_many_as_fit):
        assert trace[:2] == none[:2]
        assert differences(trace.state.model, none.state.model) == []


@pytest.mark.parametrize(("zero_stage", "settings"), [(0, {}), (1, ADAMW), (3, ADAMW), (1, MOCO)])
def test_a_run_moves_to_the_gpu_and_back(
    zero_stage: int,
    settings: dict[str, Any],
    small_store: Path,
    tmp_path: Path,
    device: torch.device,
    processes: Processes,
) -> None:
    """Compare with nine steps on the CPU: float32 rounds to 6e-8, which nine steps multiply to less than 1e-4."""
    config = small_config(small_store, engine__zero_stage=zero_stage, **settings)
    cpu = processes(1, on_cpu=True)
    [whole] = cpu.run(train_on, "cpu", config, 0, 9)
    [first] = cpu.run(train_on, "cpu", config, 0, 3, None, 9)
    save(first.state, tmp_path, 3, config)
    second = train_on(0, 1, str(device), config, 3, 6, tmp_path, 9)
    save(second.state, tmp_path, 6, config)
    [third] = cpu.run(train_on, "cpu", config, 6, 9, tmp_path)
    assert first.losses + second.losses + third.losses == pytest.approx(whole.losses, rel=1e-4)
    start = config.initial_method().state_dict()
    assert relative_over(moved(start, third.state.model), moved(start, whole.state.model)) <= 1e-3
    assert relative_over(third.state.optimizer, whole.state.optimizer) <= 1e-3
