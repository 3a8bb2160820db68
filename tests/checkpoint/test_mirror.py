"""Mirrors of checkpoints on an S3 server (moto on loopback): lost or damaged checkpoints are fetched from there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from ssl_dist.checkpoint import Checkpoint, Checkpoints, State, Writer
from ssl_dist.checkpoint.mirror import Mirror
from ssl_dist.config import ResolvedConfig
from ssl_dist.errors import CheckpointError, ConfigError, RunError
from ssl_dist.uris import join_uri
from tests.helpers import resolved_config


@pytest.fixture
def config(bucket: str, small_store: Path, tmp_path: Path) -> ResolvedConfig:
    return resolved_config(small_store, checkpoint__mirror=join_uri(bucket, tmp_path.name))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def state(step: int) -> State:
    generator = torch.Generator().manual_seed(step)
    return State({"w": torch.randn(3, 2, generator=generator)}, {"w/exp_avg": torch.randn(3, 2, generator=generator)})


def write(run: Path, config: ResolvedConfig, scores: dict[int, float | None]) -> Mirror:
    writer = Writer(Checkpoints.from_config(run, config), config)
    for step, score in scores.items():
        writer.write(step, lambda _, step=step: state(step), score)
    writer.close()
    mirror = Checkpoints.from_config(run, config).mirror
    assert mirror is not None
    return mirror


def is_step(found: Checkpoint | None, step: int) -> bool:
    assert found is not None
    pairs = zip(found.load(), state(step), strict=True)
    return found.step == step and all(
        torch.equal(ours[name], theirs[name]) for ours, theirs in pairs for name in theirs
    )


def test_the_mirror_keeps_the_same_checkpoints_as_the_run(run: Path, config: ResolvedConfig) -> None:
    mirror = write(run, config, {1: 0.2, 2: 0.7, 3: None, 4: 0.1, 5: None})
    assert mirror.names() == ["step-00000005", "step-00000004", "step-00000002"]
    assert mirror.names() == [path.name for path in Checkpoints(run).list()]


def test_a_run_that_lost_its_directory_resumes_from_the_mirror(run: Path, config: ResolvedConfig) -> None:
    mirror = write(run, config, {1: None, 2: None})
    shutil.rmtree(run)
    assert is_step(Checkpoints(run, mirror).newest(), 2)
    assert is_step(Checkpoints(run).newest(), 2), "it is here now"
    elsewhere = run.with_name("another-machine")
    assert is_step(Checkpoints(elsewhere, mirror).fetch("step-00000002"), 2)
    assert [path.name for path in (elsewhere / "checkpoints").iterdir()] == ["step-00000002"]


def test_a_damaged_checkpoint_is_fetched_and_a_damaged_copy_is_passed_over(run: Path, config: ResolvedConfig) -> None:
    mirror = write(run, config, {1: None, 2: None})
    (Checkpoints(run).path(2) / "model.safetensors").write_bytes(b"damage")
    assert is_step(Checkpoints(run, mirror).newest(), 2)
    bad = run.with_name("bad") / "step-00000003"
    shutil.copytree(Checkpoints(run).path(2), bad)
    (bad / "optimizer.safetensors").write_bytes(b"damage")
    mirror.put(bad, last="checkpoint.json")
    assert is_step(Checkpoints(run, mirror).newest(), 2)
    shutil.rmtree(run)
    assert is_step(Checkpoints(run, mirror).newest(), 2)
    mirror.delete("step-00000001")
    mirror.delete("step-00000002")
    shutil.rmtree(run)
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        Checkpoints(run, mirror).newest()


def test_an_incomplete_copy_is_passed_over_and_deleted_later(run: Path, config: ResolvedConfig) -> None:
    mirror = write(run, config, {1: None, 2: None})
    cut = run.with_name("cut") / "step-00000003"
    cut.mkdir(parents=True)
    (cut / "model.safetensors").write_bytes(b"the rest never came")
    mirror.put(cut, last="checkpoint.json")
    shutil.rmtree(run)
    assert is_step(Checkpoints(run, mirror).newest(), 2)
    write(run, config, {3: None, 4: None, 5: None})
    assert mirror.names() == ["step-00000005", "step-00000004"]


def test_a_run_survives_an_unreachable_mirror_but_does_not_start_over_without_it(
    run: Path, config: ResolvedConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_reach(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    mirror = write(run, config, {1: None})
    monkeypatch.setattr(Mirror, "put", out_of_reach)
    write(run, config, {2: None})
    assert "step-00000002 could not be copied" in caplog.text
    assert is_step(Checkpoints(run, mirror).newest(), 2)
    monkeypatch.setattr(Mirror, "names", out_of_reach)
    shutil.rmtree(run)
    with pytest.raises(RunError, match="cannot be read"):
        Checkpoints(run, mirror).newest()


def test_uris_that_are_no_mirror_are_refused(bucket: str, tmp_path: Path) -> None:
    for uri in ("runs/x", "ftp://host/x", "s4://bucket", "s3://[x/runs"):
        with pytest.raises(ConfigError, match="cannot hold checkpoints"):
            Mirror(uri)
    with pytest.raises(ConfigError) as refused:
        Mirror("s3://key:SE/CRET@bucket/runs")
    assert "CRET" not in str(refused.value)
    with pytest.raises(ConfigError, match="cannot be written"):
        Mirror(bucket.replace("bucket/runs", "nobucket/runs")).expect_writable()
    Mirror(bucket).expect_writable()
    Mirror(tmp_path.as_uri()).expect_writable()
