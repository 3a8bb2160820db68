"""Boards beside TensorBoard: what Weights & Biases and MLflow have of a run, without a server."""

from __future__ import annotations

import contextlib
import json
import logging
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ssl_dist.collectives import World
from ssl_dist.config import ResolvedConfig
from ssl_dist.errors import ConfigError, Diverged, Preempted, RunError
from ssl_dist.training.boards import opening
from ssl_dist.training.boards.board import Board, hyperparameters
from ssl_dist.training.health import read_health
from ssl_dist.training.loop import StopRequests, pretrain
from ssl_dist.training.monitor import Monitor
from tests.command import Command
from tests.helpers import resolved_config

LARS = {"name": "lars", "lr": 0.1, "weight_decay": 0.0, "warmup_epochs": 0}  # which the health watch names
BOTH = ["wandb", "mlflow"]


class Broken(Board):
    """A board whose server goes away after ``left`` calls."""

    def __init__(self, *_: object, left: int = 3) -> None:
        self.left, self.failed = left, None
        self._fail_if_left()

    def _fail_if_left(self) -> None:
        if not self.left:
            raise ConnectionError("no route to https://alice:S3CRET@host/api\nat all")

    def scalars(self, *_: object) -> None:
        self.left -= 1
        self._fail_if_left()

    text = picture = scalars  # type: ignore[assignment]

    def close(self, *, failed: bool) -> None:
        self.failed = failed


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Pretend that the libraries are installed, and that their boards are ``Broken``."""
    monkeypatch.setattr(opening, "expect_libraries", lambda names: None)
    monkeypatch.setattr(opening, "_kind", lambda name: Broken)
    return monkeypatch


@pytest.mark.parametrize("name", BOTH)
def test_a_missing_library_is_refused_before_the_run_starts(
    name: str, command: Command, small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    settings = (f"data.store={small_store}", "batch={size: 48, micro: 48}", f"monitor.also=[{name}]")
    given = [word for one in settings for word in ("--set", one)]
    out = command("pretrain", "simclr-digits", *given, "--run-dir", str(tmp_path / "run"))
    assert out.code == 2
    assert f"monitor.also {name}: {name} is not installed: pip install 'ssl_dist[{name}]'" in out.err
    assert not (tmp_path / "run").exists()


def test_an_unknown_board_is_refused(small_store: Path) -> None:
    with pytest.raises(ConfigError, match=r"monitor\.also"):
        resolved_config(small_store, monitor__also=["comet"])


def test_a_board_that_fails_does_not_end_the_run(
    installed: pytest.MonkeyPatch, small_store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = resolved_config(small_store, monitor__also=["mlflow"])
    with caplog.at_level(logging.WARNING, "ssl_dist.training"):
        monitor = Monitor(tmp_path, config, config.plan(), 0)
        for step in range(1, 6):
            monitor.scalars(step, {"x": 1.0})
        monitor.close()
    said = "monitor.also mlflow takes nothing more (no route to https://host/api): the run goes on without it"
    assert caplog.text.count(said) == 1
    assert "S3CRET" not in caplog.text
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 5


def test_a_board_that_cannot_begin_ends_the_run_before_its_first_step(
    installed: pytest.MonkeyPatch, small_store: Path, tmp_path: Path
) -> None:
    installed.setattr(Broken.__init__, "__kwdefaults__", {"left": 0})
    config = resolved_config(small_store, monitor__also=["mlflow"])
    with pytest.raises(RunError, match=r"mlflow cannot begin \(no route to https://host/api\).*monitor\.also=\[\]"):
        Monitor(tmp_path, config, config.plan(), 0)


def test_a_board_that_cannot_begin_again_does_not_end_a_run_that_has_begun(
    installed: pytest.MonkeyPatch, small_store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be a restart after a lost node, which nobody watches."""
    installed.setattr(Broken.__init__, "__kwdefaults__", {"left": 0})
    config = resolved_config(small_store, monitor__also=["mlflow"])
    with caplog.at_level(logging.WARNING, "ssl_dist.training"):
        monitor = Monitor(tmp_path, config, config.plan(), 4)
        monitor.scalars(5, {"x": 1.0})
        monitor.close()
    assert "monitor.also mlflow cannot begin (no route to https://host/api)" in caplog.text


@pytest.mark.parametrize(
    ("end", "failed"),
    [(None, False), (RuntimeError("x"), True), (Diverged("x"), True), (Preempted("x"), False)],
)
def test_boards_know_how_a_run_ended(
    installed: pytest.MonkeyPatch, small_store: Path, tmp_path: Path, end: Exception | None, failed: bool
) -> None:
    made: list[Broken] = []
    installed.setattr(opening, "_kind", lambda name: lambda *_: made.append(Broken(left=99)) or made[-1])

    def stop() -> bool:
        if end:
            raise end
        return False

    config = resolved_config(small_store, epochs=0.25, probe=None, monitor__also=["mlflow"])
    with pytest.raises(type(end)) if end else contextlib.nullcontext():
        pretrain(config, tmp_path, World(), StopRequests(stop=stop))
    assert [one.failed for one in made] == [failed]


def test_hyperparameters_are_plain_and_hold_no_keys(small_store: Path) -> None:
    config = resolved_config(small_store, monitor__hparams=["data.store", "optim.betas", "probe", "epochs"])
    there = config.model_copy(
        update={"data": config.data.model_copy(update={"store": "s3://key:SECRET@bucket/photos?token=SECRET"})}
    )
    known = hyperparameters(there)
    assert known["data.store"] == "s3://bucket/photos"
    assert known["epochs"] == 100
    assert all(isinstance(value, (bool, int, float, str)) for value in known.values())


@pytest.fixture(scope="module")
def config(small_store: Path) -> ResolvedConfig:
    probe = {"every_epochs": 1, "bank": 30, "queries": 12, "k": 3}
    also = {"monitor__also": BOTH, "monitor__every_steps": 2}
    return resolved_config(small_store, epochs=2, optim=LARS, probe=probe, **also)


@pytest.fixture(scope="module")
def run(config: ResolvedConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Interrupt a run after 3 of 8 steps and finish it, with both libraries offline; its store's name holds a key."""
    directory = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        asked = iter([False, False, True])
        pretrain(config, directory, World(), StopRequests(stop=lambda: next(asked)))
        pretrain(config, directory, World(), StopRequests())
        yield directory


def written(run: Path, tag: str) -> dict[int, float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[tag] for line in lines if tag in line}


TAGS = ("train/loss", "embedding/rank", "probe/knn", "plan/total_steps", "speed/data_wait_share")


@pytest.mark.extras
def test_mlflow_has_the_run_once(run: Path, config: ResolvedConfig) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{run}/mlflow.db")
    [experiment] = [one for one in client.search_experiments() if one.name == "ssl_dist"]
    [found] = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == (run / "mlflow-run-id").read_text()
    assert found.info.status == "FINISHED"
    for tag in TAGS:
        history = client.get_metric_history(found.info.run_id, tag)
        assert {one.step: one.value for one in history} == written(run, tag)
        assert len(history) == len(written(run, tag))
    assert found.data.params == {key: str(value) for key, value in hyperparameters(config).items()}
    [finding] = read_health(run)
    assert found.data.tags["health/lars-without-decay"] == f"step 0: {finding.text}"
    names = [one.path for one in client.list_artifacts(found.info.run_id)]
    assert names == ["views-00000000.png", "views-00000003.png"]


def records(file: Path) -> Iterator[Any]:
    """Yield the records of an offline run: LevelDB's log format, in blocks of 32 KiB, after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    content, at, parts = file.read_bytes(), 7, b""
    while at < len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last of several
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


@pytest.mark.extras
def test_wandb_has_the_run_under_one_number(run: Path, config: ResolvedConfig) -> None:
    parts = sorted(run.glob("wandb/offline-run-*/*.wandb"))
    assert len(parts) == 2
    curves: dict[str, dict[int, float]] = {tag: {} for tag in TAGS}
    summary, settings, numbers = dict[str, Any](), dict[str, Any](), set[str]()
    for record in (record for part in parts for record in records(part)):
        if record.HasField("run"):
            numbers.add(record.run.run_id)
            settings |= {one.key or one.nested_key[0]: json.loads(one.value_json) for one in record.run.config.update}
        for one in record.summary.update:
            summary[one.key or "/".join(one.nested_key)] = json.loads(one.value_json)
        for one in record.history.item:
            if (tag := one.key or one.nested_key[0]) in curves:
                curves[tag][record.history.step.num] = json.loads(one.value_json)
    assert numbers == {(run / "wandb-run-id").read_text()}
    for tag in TAGS:
        assert curves[tag] == written(run, tag)
    assert settings.items() >= hyperparameters(config).items()
    assert read_health(run)[0].text in str(summary["health/lars-without-decay"])
    assert list(run.glob("wandb/offline-run-*/files/media/images/views_0_*.png"))


@pytest.mark.extras
def test_boards_change_no_bit_of_the_weights(run: Path, config: ResolvedConfig, tmp_path: Path) -> None:
    alone = config.model_copy(update={"monitor": config.monitor.model_copy(update={"also": ()})})
    pretrain(alone, tmp_path, World(), StopRequests())
    a, b = (path / "checkpoints" / "step-00000008" / "model.safetensors" for path in (run, tmp_path))
    assert a.read_bytes() == b.read_bytes()
