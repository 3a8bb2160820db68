"""A run that does not fit in the GPU's memory ends with one line that names ``batch.micro``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ssl_dist.collectives import World
from ssl_dist.errors import RunError
from ssl_dist.training.loop import StopRequests, pretrain
from tests.helpers import resolved_config

pytestmark = pytest.mark.gpu


@pytest.fixture
def little_memory(device: torch.device) -> Iterator[None]:
    """Give this process 64 MB of the GPU beside what it holds."""
    if device.type != "cuda":
        pytest.skip("no limit on the CPU's memory")
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (64 << 20)) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.usefixtures("little_memory")
def test_a_micro_batch_that_is_too_large_is_told_in_one_line(
    small_store: Path, tmp_path: Path, device: torch.device
) -> None:
    """Forty-eight pairs of 224 px take 58 MB as views, and 300 MB in each of the first layers."""
    net = {"backbone": {"name": "resnet8", "stem": "half", "width": 64}, "engine__zero_stage": 0}
    config = resolved_config(small_store, batch={"size": 48, "micro": 48}, augment__size_px=224, **net)
    with pytest.raises(RunError) as told:
        pretrain(config, tmp_path, World(0, 1, device), StopRequests())
    name = torch.cuda.get_device_properties(device).name
    assert str(told.value).startswith(f"out of memory on {name} with ")
    assert " GB with batch.micro=48: lower batch.micro" in str(told.value)
    assert "\n" not in str(told.value)
    assert told.value.exit_code == 2
