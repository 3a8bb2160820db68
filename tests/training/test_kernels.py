"""Settings of a step's kernels: memory format, compilation, deterministic algorithms."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from ssl_dist.collectives import World
from ssl_dist.data import SamplePlan
from ssl_dist.data.batches import Batches
from ssl_dist.errors import ConfigError
from ssl_dist.store import ImageStore
from ssl_dist.training import engine as engines
from ssl_dist.training.batch_norm import RunningStatistics
from ssl_dist.training.engine import Engine
from tests.helpers import small_config, train

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize(
    ("wanted", "device", "precision", "expected"),
    [
        ("auto", CUDA, "bf16", torch.channels_last),
        ("auto", CUDA, "fp32", torch.contiguous_format),
        ("auto", CPU, "bf16", torch.contiguous_format),
        ("channels_last", CPU, "fp32", torch.channels_last),
        ("contiguous", CUDA, "bf16", torch.contiguous_format),
    ],
)
def test_the_memory_format_of_a_device(
    wanted: str, device: torch.device, precision: str, expected: torch.memory_format
) -> None:
    config = small_config(Path("store"), engine__memory_format=wanted, engine__precision=precision)
    assert engines._memory_format(config, device) == expected


def test_the_backbone_gets_images_in_the_memory_format(small_store: Path) -> None:
    """Channels last, and with the same values: the loss is that of contiguous images up to float32's rounding."""
    losses = []
    for wanted in ("contiguous", "channels_last"):
        config = small_config(small_store, engine__memory_format=wanted)
        engine, seen = Engine(config.initial_method(), config, World()), list[Tensor]()
        engine.method.backbone.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        batch = Batches(SamplePlan(config, ImageStore(small_store)), World(), 0, 1).fetch(0)
        losses.append(engine.step(batch, 0.01).loss)
        assert seen
        for images in seen:
            assert images.is_contiguous(memory_format=torch.channels_last) == (wanted == "channels_last")
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.fixture
def _switches() -> Iterator[None]:
    benchmark, fill = torch.backends.cudnn.benchmark, torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.backends.cudnn.benchmark, torch.utils.deterministic.fill_uninitialized_memory = benchmark, fill
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_switches")
def test_a_run_without_determinism_after_one_with_it_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # set back after the test
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    for wanted in (True, False):
        engines._choose_kernels(deterministic=wanted)
        assert torch.are_deterministic_algorithms_enabled() is wanted
        assert torch.backends.cudnn.benchmark is not wanted


def test_compilation_is_refused_where_weights_are_gathered_within_the_pass() -> None:
    with pytest.raises(ConfigError, match=r"engine\.compile default with engine\.zero_stage 3"):
        small_config(Path("store"), engine__compile="default", engine__zero_stage=3)


def test_without_a_compiler_the_pass_stays_and_the_log_says_so(
    small_store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    config = small_config(small_store, engine__compile="default")
    plain = config.initial_method().backbone.forward.__func__
    with caplog.at_level(logging.WARNING):
        engine = Engine(config.initial_method(), config, World())
    assert engine.method.backbone.forward.__func__ is plain
    assert "engine.compile default: no C++ compiler was found, so the backbone is not compiled" in caplog.text


def test_statistics_are_the_same_where_they_are_read_at_the_end_of_the_pass() -> None:
    """Two passes count and one does not; the layer outside the compiled part passes by itself."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 7, 3), nn.BatchNorm2d(7))
    network = nn.Sequential(body, nn.Flatten(), nn.Linear(7 * 16, 4), nn.BatchNorm1d(4, momentum=0.3))
    found: list[dict[str, Any]] = []
    for whole in (False, True):
        mine = copy.deepcopy(network)
        statistics = RunningStatistics(mine, mine[0] if whole else None)
        images = torch.randn(3, 6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        for batch, counts in zip(images, (True, False, True), strict=True):
            with statistics.collecting(counts):
                mine(batch + 0.5)
        statistics.update(World())
        found.append(mine.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not torch.equal(found[0]["0.1.running_mean"], torch.zeros(5))


@pytest.mark.slow  # a minute or two where the compiler's cache is empty
@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_compiled_steps_are_the_plain_ones(small_store: Path, zero_stage: int) -> None:
    """A compiler sums in another order: float32's 6e-8, times what six steps make of it."""
    graphs, traces = [], []
    for mode in ("off", "default"):
        torch.compiler.reset()
        counters.clear()
        config = small_config(small_store, engine__compile=mode, engine__zero_stage=zero_stage)
        traces.append(train(0, 1, config, 0, 6))
        graphs.append(counters["stats"]["unique_graphs"])
    plain, compiled = traces
    assert graphs == [0, 2], "the pass with a graph of gradients, and the one without"
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-5)
    assert compiled.grad_norms == pytest.approx(plain.grad_norms, rel=1e-4)
    for name, tensor in plain.state.model.items():
        torch.testing.assert_close(compiled.state.model[name], tensor, rtol=1e-3, atol=1e-5)
