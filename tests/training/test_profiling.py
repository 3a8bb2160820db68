"""A profile divides a step's time among its sections, and changes nothing else."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.autograd import DeviceType

from ssl_dist.checkpoint import Checkpoints
from ssl_dist.collectives import World
from ssl_dist.commands.profile import show_profile
from ssl_dist.config import ResolvedConfig
from ssl_dist.timing import PREFIX, SECTIONS, marks
from ssl_dist.training.loop import StopRequests, pretrain
from ssl_dist.training.profiling import _sections, read_profile
from tests.helpers import differences, resolved_config

PROBE = {"every_epochs": 1, "bank": 30, "queries": 12, "k": 3}


def config_of(store: Path, steps: int, epochs: int = 2) -> ResolvedConfig:
    return resolved_config(store, epochs=epochs, monitor__profile_steps=steps, monitor__every_steps=2, probe=PROBE)


def event(name: str, start: float, end: float, gpu_us: float = 0) -> SimpleNamespace:
    span = SimpleNamespace(start=start, end=end)
    times = {"cpu_time_total": end - start, "device_time_total": gpu_us, "device_type": DeviceType.CPU}
    return SimpleNamespace(name=name, time_range=span, **times)


def test_time_counts_in_the_innermost_section_alone() -> None:
    """Microseconds of two steps; what is outside of every section belongs to none."""
    events = [
        event(PREFIX + "backward", 100, 900, gpu_us=60),
        event(PREFIX + "reduce", 300, 500, gpu_us=20),
        event(PREFIX + "reduce", 500, 600),
        event("aten::mm", 120, 250, gpu_us=40),
        event(PREFIX + "optimizer", 900, 1000),
        event(PREFIX + "backward", 2000, 2100),
    ]
    found = _sections(reversed(events), steps=2)
    assert found.keys() == set(SECTIONS)
    spent = {name: [round(1e3 * ms) for ms in one.values()] for name, one in found.items() if one["host_ms"]}
    assert spent == {"backward": [300, 20], "reduce": [150, 10], "optimizer": [50, 0]}


def test_a_profiled_run_is_the_same_run_and_its_sections_fill_its_steps(small_store: Path, tmp_path: Path) -> None:
    models = []
    for steps in (0, 4):
        run = tmp_path / str(steps)
        run.mkdir()
        pretrain(config_of(small_store, steps, epochs=3), run, World(), StopRequests())
        models.append(Checkpoints(run).newest().load().model)  # type: ignore[union-attr]
    assert differences(*models) == []
    assert read_profile(tmp_path / "0") == {}
    found = read_profile(tmp_path / "4")
    steps = found["steps"]
    assert (steps["first_step"], steps["steps"]) == (5, 4)
    spent = {name: one["host_ms"] for name, one in steps["sections"].items()}
    assert all(spent[name] > 0 for name in set(SECTIONS) - {"reduce", "projector", "checkpoint"}), spent
    assert 0.5 * steps["step_ms"] < sum(spent.values()) <= steps["step_ms"]
    traced = {one.get("name") for one in json.loads(Path(steps["trace"]).read_text())["traceEvents"]}
    assert {PREFIX + "forward", "aten::convolution"} <= traced
    times = [at for _, at in found["start"]["marks"]]
    assert times == sorted(times)
    assert [what for what, _ in found["start"]["marks"]][-5:] == [
        "store opened",
        "network and DeepSpeed made",
        "monitor and probe made, first batch read",
        "first weights probed",
        "first step",
    ]


def test_the_profile_of_an_earlier_start_is_not_shown_again(small_store: Path, tmp_path: Path) -> None:
    """Four steps are done by the first start; the second is too short to be profiled."""
    asked = iter([False] * 6 + [True] * 9)
    pretrain(config_of(small_store, 1), tmp_path, World(), StopRequests(stop=lambda: next(asked)))
    assert read_profile(tmp_path).keys() == {"steps", "start"}
    pretrain(config_of(small_store, 1), tmp_path, World(), StopRequests())
    assert read_profile(tmp_path).keys() == {"start"}


def test_deepspeed_has_every_method_that_counts_as_the_reduction_of_gradients() -> None:
    from deepspeed.runtime.engine import DeepSpeedEngine

    from ssl_dist.training.zero import _REDUCTIONS

    assert set(dir(DeepSpeedEngine)) >= _REDUCTIONS


def test_a_process_starts_before_its_first_mark() -> None:
    (what, began), *_ = marks()
    assert what == "process started"
    assert 0 < time.time() - began < 24 * 3600


def test_tables_show_when_each_part_was_done_and_what_is_left_of_a_step(capfd: pytest.CaptureFixture[str]) -> None:
    driver, worker = (
        [("process started", 100.0), ("Ray reached", 104.5)],
        [("process started", 105.0), ("first step", 109)],
    )
    sections = {name: {"host_ms": 0.0, "gpu_ms": 0.0} for name in SECTIONS}
    sections |= {"forward": {"host_ms": 30.0, "gpu_ms": 0.0}, "reduce": {"host_ms": 5.5, "gpu_ms": 0.0}}
    steps = {"first_step": 5, "steps": 20, "step_ms": 50.0, "trace": "run/profile/t.json", "sections": sections}
    show_profile({"steps": steps, "start": {"host": "elsewhere", "marks": worker}}, driver)
    lines = [" ".join(line.replace("│", " ").split()) for line in capfd.readouterr().out.splitlines()]
    assert lines[0] == "worker 0 ran on elsewhere, whose clock may differ from this machine's"
    rows = [
        "driver: Ray reached 4.50 s 4.50 s",
        "worker 0: process started 5.00 s",
        "worker 0: first step 4.00 s 9.00 s",
        "forward 30.00 60.0%",
        "reduce 5.50 11.0%",
        "other 14.50 29.0%",
        "step 50.00 100.0%",
        "steps 6 to 25; for Perfetto and TensorBoard: run/profile/t.json",
    ]
    assert [line for line in lines if line in rows] == rows
    show_profile({}, driver)
    assert capfd.readouterr().out == "no step was profiled: the run was too short\n"
