"""The parts of the GPU benchmark: they run on a CPU, name what is missing, and their runs resume."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.cuda import cifar10, end_to_end, measure, synthetic, views
from benchmarks.cuda.loops import Bare, Ours
from ssl_dist.config import RunConfig
from ssl_dist.store import ImageStore

CPU = torch.device("cpu")
TINY = end_to_end.Net("resnet8", "half", 32, 8, 4, 24)


def records(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_synthetic_store_holds_its_images(tmp_path: Path) -> None:
    pixels = synthetic.images(20, 16)
    synthetic.write_store(tmp_path / "store", pixels)
    store = ImageStore(tmp_path / "store")
    assert not store.verify()
    assert np.array_equal(store.gather(np.arange(20)), pixels)
    assert len(np.unique(pixels, axis=0)) == 20


def test_times_are_of_the_calls_after_the_warm_up() -> None:
    calls: list[int] = []
    times = measure.milliseconds(lambda: calls.append(0), CPU, 0.01)
    assert len(times) == len(calls) - 5
    assert all(one >= 0 for one in times)


def test_a_profile_names_the_operations_of_a_call() -> None:
    matrix = torch.ones(64, 64)
    found = measure.table(lambda: matrix @ matrix, CPU, calls=2)
    assert "aten::mm" in {row["name"] for row in found["operations"]}
    assert found["kernels"] == []


def test_views_are_measured_and_kornia_is_named_where_it_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kornia.augmentation", None)  # its import fails
    monkeypatch.setattr(views, "TASKS", [views.Task(8, 16)])
    views.main(device="cpu", images=2, seconds=0.01, rounds=1)
    missing, *found = records(capsys)
    assert (missing["contender"], missing["missing"]) == ("kornia", "kornia")
    assert [one["contender"] for one in found] == ["ours", "ours, bf16"]
    assert all(one["images"] == 2 and one["views_per_s"] > 0 for one in found)


def test_loops_take_turns_and_one_that_fails_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lightly.transforms", None)
    monkeypatch.setitem(end_to_end.NETS, "tiny", TINY)

    def without_compiler(*given: Any, compiled: bool) -> Bare:
        if compiled:
            raise RuntimeError("no compiler")
        return Bare(*given, compiled=False)

    monkeypatch.setattr(end_to_end, "Bare", without_compiler)
    end_to_end.main("tiny", ",".join(end_to_end.LOOPS), "cpu", seconds=0.01, workers=0, settings=[])
    missing, failed, ours, bare = records(capsys)
    assert (missing["contender"], missing["missing"]) == ("lightly", "lightly")
    assert failed["contender"] == "bare-compiled"
    assert failed["failed"] == "RuntimeError: no compiler"
    assert len(ours["all_images_per_s"]) == 2
    assert ours["views_calls"] == 2  # of two micro-batches, each embedded once
    assert ours["micro"] == 4
    assert bare["images_per_s"] > 0


def test_the_bare_loop_has_the_network_of_ours(tmp_path: Path) -> None:
    pixels = synthetic.images(8, 32)
    synthetic.write_store(tmp_path / "store", pixels)
    config: RunConfig = end_to_end.config_of(TINY, tmp_path / "store", CPU, {"engine.precision": "fp32"})
    ours, bare = Ours(config, CPU), Bare(config, pixels, CPU, compiled=False)
    shapes = [[p.shape for p in of.parameters()] for of in (ours._engine.method, bare._network)]
    assert shapes[0] == shapes[1]
    ours.close()


def command(monkeypatch: pytest.MonkeyPatch, out: Path, steps: int) -> None:
    """Let the command line train ``steps`` of 10 steps a call and find an accuracy of 0.5."""

    def pretrain(out: Path, words: list[str], deadline: float) -> int:
        assert ("--resume" in words) == (out / cifar10.CONFIG).exists()
        out.mkdir(exist_ok=True)
        (out / cifar10.CONFIG).write_text("{}")
        step = min(10, cifar10._step(out) + steps)
        with (out / "metrics.jsonl").open("a") as lines:
            lines.write(json.dumps({"step": step, "epoch": step, "plan/total_steps": 10}) + "\n")
        (out / f"checkpoints/step-{step:08d}").mkdir(parents=True)
        return 0

    monkeypatch.setattr(cifar10, "_pretrain", pretrain)
    monkeypatch.setattr(cifar10, "_evaluate", lambda *_: {"top1": 0.5})


def test_a_run_on_cifar10_goes_on_in_the_next_call_and_is_measured_at_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    command(monkeypatch, out, steps=6)
    for _ in range(3):  # the third finds that nothing is left to do
        cifar10.main(tmp_path, tmp_path, out, raw=False, settings=[])
    first, second, measured, third, again = records(capsys)
    assert (first["step"], second["step"], third["step"]) == (6, 10, 10)
    assert len(third["calls"]) == 2
    assert measured["knn"] == measured["linear"] == {"top1": 0.5}
    assert again["train_s"] == measured["train_s"] > 0
