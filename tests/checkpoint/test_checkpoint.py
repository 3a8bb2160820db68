"""Checkpoints of a run: a whole one is found, a damaged one is passed over, none is half read."""

from __future__ import annotations

import json
import os
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from ssl_dist.checkpoint import Checkpoints, State, Writer, verify
from ssl_dist.config import ResolvedConfig
from ssl_dist.errors import CheckpointError, RunError
from tests.helpers import resolved_config


@pytest.fixture
def config(small_store: Path) -> ResolvedConfig:
    return resolved_config(small_store)


def state(step: int) -> State:
    generator = torch.Generator().manual_seed(step)
    model = {"w": torch.randn(3, 2, generator=generator), "n": torch.tensor(step)}
    return State(model, {"w/exp_avg": torch.randn(3, 2, generator=generator), "w/step": torch.tensor(float(step))})


def save(run: Path, step: int, config: ResolvedConfig, score: float | None = None) -> Path:
    return Checkpoints(run).save(step, config, state(step), score)


def test_a_saved_state_is_loaded_bit_for_bit_and_the_newest_are_kept(tmp_path: Path, config: ResolvedConfig) -> None:
    for step in (5, 10, 15):
        save(tmp_path, step, config)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000010", "step-00000015"]
    found = Checkpoints(tmp_path).newest()
    assert found is not None
    assert (found.step, found.config) == (15, config)
    for ours, theirs in zip(found.load(), state(15), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.fixture
def group_may_read() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_who_may_read_it_is_said_by_the_umask(group_may_read: None, tmp_path: Path, config: ResolvedConfig) -> None:
    written = save(tmp_path, 5, config)
    assert {file.name: stat.S_IMODE(file.stat().st_mode) for file in written.iterdir()} == {
        "checkpoint.json": 0o640,
        "model.safetensors": 0o640,
        "optimizer.safetensors": 0o640,
    }


@pytest.mark.parametrize("times", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_flipped_bits_and_torn_ends_fall_back_to_the_checkpoint_before(
    tmp_path: Path, config: ResolvedConfig, times: int
) -> None:
    save(tmp_path, 5, config)
    newest, harmless = save(tmp_path, 10, config), 0
    files, random = sorted(newest.iterdir()), np.random.default_rng(0)
    assert len(files) == 3
    for number in range(times):
        file = files[number % 3]
        whole = file.read_bytes()
        place = int(random.integers(len(whole)))
        torn = bytearray(whole[:place] if number % 10 == 0 else whole)
        if number % 10:
            torn[place] ^= 1 << int(random.integers(8))
        file.write_bytes(torn)
        if file.suffix == ".json" and json_equal(whole, bytes(torn)):
            harmless += 1  # white space between JSON tokens
        else:
            found = Checkpoints(tmp_path).newest()
            assert found is not None
            assert found.step == 5, (file.name, place)
        file.write_bytes(whole)
    assert harmless < times / 20
    assert verify(newest).step == 10


def json_equal(a: bytes, b: bytes) -> bool:
    try:
        return bool(json.loads(a) == json.loads(b))
    except ValueError:
        return False


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "checkpoint.json"])
def test_cut_and_missing_files_are_passed_over_and_named(
    tmp_path: Path, config: ResolvedConfig, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 5, config)
    file = save(tmp_path, 10, config) / name
    whole = file.read_bytes()
    for length in (0, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        found = Checkpoints(tmp_path).newest()
        assert found is not None
        assert found.step == 5
    file.unlink()
    assert Checkpoints(tmp_path).newest() is not None
    assert "step-00000010" in caplog.text
    assert "passed over" in caplog.text
    with pytest.raises(CheckpointError, match="step-00000010"):
        verify(file.parent)


def test_a_half_written_directory_is_not_a_checkpoint(tmp_path: Path, config: ResolvedConfig) -> None:
    whole = save(tmp_path, 5, config)
    shutil.copytree(whole, tmp_path / "checkpoints" / ".step-00000010.tmp")
    found = Checkpoints(tmp_path).newest()
    assert found is not None
    assert found.step == 5
    assert save(tmp_path, 10, config).is_dir()


def test_a_damaged_checkpoint_can_be_written_again(tmp_path: Path, config: ResolvedConfig) -> None:
    path = save(tmp_path, 5, config)
    (path / "model.safetensors").write_bytes(b"")
    save(tmp_path, 5, config)
    assert verify(path).step == 5


def test_a_full_disk_leaves_older_checkpoints(
    tmp_path: Path, config: ResolvedConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 5, config)

    def full(tensors: object, file: Path, metadata: object) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(
        RunError, match=r"step-00000010 cannot be written .*No space left.*older checkpoints are untouched"
    ):
        save(tmp_path, 10, config)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]


def test_later_damaged_checkpoints_are_deleted_and_not_counted(tmp_path: Path, config: ResolvedConfig) -> None:
    """A run resumes before two damaged checkpoints: it keeps those that it writes, and deletes the damaged ones."""
    for step in (6, 8, 10):
        path = Checkpoints(tmp_path).save(step, keeping(config, keep=3), state(step), score=0.9)
        if step > 6:
            (path / "model.safetensors").write_bytes(b"")
    for step in (7, 9):
        save(tmp_path, step, keeping(config, keep_best=0))
        assert verify(Checkpoints(tmp_path).path(step)).step == step
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000007", "step-00000009"]


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(tmp_path: Path, config: ResolvedConfig) -> None:
    for step in (5, 10):
        (save(tmp_path, step, config) / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints in .* verifies, newest step-00000010"):
        Checkpoints(tmp_path).newest()


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path).newest() is None


def keeping(config: ResolvedConfig, **changes: int) -> ResolvedConfig:
    return config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update=changes)})


def test_the_best_by_the_probe_is_kept_beside_the_newest(tmp_path: Path, config: ResolvedConfig) -> None:
    for step, score in ((1, 0.2), (2, 0.7), (3, None), (4, 0.7), (5, 0.1), (6, None), (7, 0.3)):
        save(tmp_path, step, config, score)
    kept = [verify(path) for path in Checkpoints(tmp_path).list()]
    assert [(one.step, one.score) for one in kept] == [(7, 0.3), (6, None), (4, 0.7)]
    save(tmp_path, 8, keeping(config, keep=1, keep_best=2), 0.5)
    assert [path.name[-1] for path in Checkpoints(tmp_path).list()] == ["8", "4"]


def test_a_writer_writes_in_the_background_and_says_when_it_failed(
    tmp_path: Path, config: ResolvedConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    torn = tmp_path / "checkpoints" / ".step-00000003.tmp"
    torn.mkdir(parents=True)
    writer, go, save_file = (
        Writer(Checkpoints.from_config(tmp_path, config), config),
        threading.Event(),
        safetensors.torch.save_file,
    )
    assert not torn.exists()

    def slow(tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str] | None) -> None:
        assert go.wait(60)
        save_file(tensors, file, metadata)

    monkeypatch.setattr(safetensors.torch, "save_file", slow)
    writer.write(5, lambda _: state(5), 0.5)
    assert not writer.failed
    assert Checkpoints(tmp_path).newest() is None
    go.set()
    writer.wait()
    assert verify(Checkpoints(tmp_path).path(5)).score == 0.5

    def full(tensors: object, file: Path, metadata: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    writer.write(10, lambda _: state(10), None)
    writer.write(15, lambda _: state(15), None)  # waits, and writes nothing
    assert writer.failed
    with pytest.raises(RunError, match="step-00000010 cannot be written"):
        writer.wait()
    writer.close()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]


def test_a_snapshot_is_reused_only_once_it_is_on_disk(
    tmp_path: Path, config: ResolvedConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, save_file = Writer(Checkpoints.from_config(tmp_path, config), config), safetensors.torch.save_file

    def slow(tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str] | None) -> None:
        time.sleep(0.2)
        save_file(tensors, file, metadata)

    def over(into: State | None) -> State:
        assert into is not None
        for held, new in zip(into, state(10), strict=True):
            for name, tensor in held.items():
                tensor.copy_(new[name])
        return into

    monkeypatch.setattr(safetensors.torch, "save_file", slow)
    writer.write(5, lambda _: state(5), None)
    writer.write(10, over, None)
    writer.close()
    for step in (5, 10):
        for ours, theirs in zip(verify(Checkpoints(tmp_path).path(step)).load(), state(step), strict=True):
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
