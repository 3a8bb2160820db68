"""The numbers that a run writes: TensorBoard and metrics.jsonl hold the same ones, also after a resume."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from ssl_dist.checkpoint import Checkpoints
from ssl_dist.collectives import World
from ssl_dist.config import ResolvedConfig
from ssl_dist.errors import RunError, StoreError
from ssl_dist.files import write_text
from ssl_dist.report.curves import draw
from ssl_dist.training.loop import StopRequests, pretrain
from ssl_dist.training.monitor import Monitor, Stopwatch
from ssl_dist.training.progress_bar import ProgressBar
from tests.helpers import resolved_config

TAGS = {
    "train/loss",
    "train/learning_rate",
    "train/gradient_norm",
    "embedding/alignment",
    "embedding/uniformity",
    "embedding/std",
    "speed/images_per_s",
    "speed/data_wait_share",
    "memory/peak_mb",
    "probe/knn",
}


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def board(run: Path) -> EventAccumulator:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return events


@pytest.fixture(scope="module")
def config(small_store: Path) -> ResolvedConfig:
    return resolved_config(
        small_store, epochs=2, monitor__every_steps=2, probe={"every_epochs": 1, "bank": 30, "queries": 12, "k": 3}
    )


@pytest.fixture(scope="module")
def run(config: ResolvedConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interrupt a run after 3 of 8 steps, then finish it."""
    directory = tmp_path_factory.mktemp("run")
    asked = iter([False, False, True])
    first = pretrain(config, directory, World(), StopRequests(stop=lambda: next(asked)))
    assert first["step"] == 3
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/loss": 99}\n{"step": 5, "tr')  # beyond the checkpoint, and torn
    last = pretrain(config, directory, World(), StopRequests())
    assert last["step"] == 8
    assert Checkpoints(directory).list()[0].name == "step-00000008"
    return directory


def test_tensorboard_and_metrics_hold_the_same_numbers_once(run: Path) -> None:
    events = board(run)
    assert set(events.Tags()["scalars"]) >= TAGS
    for tag in TAGS:
        found = {event.step: event.value for event in events.Scalars(tag)}
        written = {line["step"]: line[tag] for line in lines(run) if tag in line}
        assert len(found) == len(events.Scalars(tag))
        assert found == pytest.approx(written, rel=1e-6)
    assert [line["step"] for line in lines(run) if "train/loss" in line] == [2, 3, 4, 6, 8]
    assert [line["step"] for line in lines(run) if "probe/knn" in line] == [0, 5, 8]


def test_tensorboard_has_views_and_hyperparameters(run: Path, config: ResolvedConfig) -> None:
    events = board(run)
    picture = events.Images("views")[0]
    assert (picture.height, picture.width) == (2 * 16, 4 * 16)  # two views of the four images of a micro-batch
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    written = HParamsPluginData.FromString(content).session_start_info.hparams
    assert written["method.temperature"].number_value == config.flat()["method.temperature"]
    assert set(written) == set(config.flat())


def test_hyperparameters_hold_no_keys(config: ResolvedConfig, tmp_path: Path) -> None:
    there = config.model_copy(
        update={"data": config.data.model_copy(update={"store": "s3://key:SECRET@bucket/photos"})}
    )
    Monitor(tmp_path, there, there.plan(), 0).close()
    content = board(tmp_path).SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    written = HParamsPluginData.FromString(content).session_start_info.hparams
    assert written["data.store"].string_value == "s3://bucket/photos"


def test_an_interrupted_run_ends_as_an_undisturbed_one(run: Path, config: ResolvedConfig, tmp_path: Path) -> None:
    undisturbed = pretrain(config, tmp_path, World(), StopRequests())
    for tag in ("train/loss", "train/gradient_norm", "probe/knn", "embedding/std"):
        assert lines(run)[-1].get(tag, undisturbed[tag]) == undisturbed[tag]
    a, b = (path / "checkpoints" / "step-00000008" for path in (run, tmp_path))
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (a / name).read_bytes() == (b / name).read_bytes()


def test_a_store_of_other_images_is_refused(small_store: Path, config: ResolvedConfig, tmp_path: Path) -> None:
    for facts in ({"num_images": 50}, {"image_shape": (32, 32, 3)}):
        other = config.model_copy(update={"facts": config.facts.model_copy(update=facts)})
        with pytest.raises(StoreError, match="where the run began with"):
            pretrain(other, tmp_path, World(), StopRequests())


def test_the_bar_shows_the_metrics(run: Path) -> None:
    screen, lines = io.StringIO(), (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").unlink()
    with ProgressBar(run, Console(file=screen, force_terminal=True, width=120)) as bar:
        (run / "metrics.jsonl").write_text(lines)
        bar.update()
    assert bar.last["step"] == 8
    assert "8/8" in screen.getvalue()
    assert "loss" in screen.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_the_bar_says_once_what_is_unhealthy(run: Path, tmp_path: Path, terminal: bool) -> None:
    shutil.copytree(run, tmp_path / "run")
    screen = io.StringIO()

    def write(*texts: str) -> None:
        lines = [json.dumps({"step": 5, "epoch": 1.2, "rule": "starved", "text": text}) for text in texts]
        write_text(tmp_path / "run" / "health.jsonl", "\n".join(lines) + "\n")

    write("before the bar")
    with ProgressBar(tmp_path / "run", Console(file=screen, force_terminal=terminal, width=60)) as bar:
        for texts in (("before the bar",), ("before the bar", "waits [for] images " * 4)) * 2:
            write(*texts)
            bar.update()
    assert screen.getvalue().count("warning: step 5: " + "waits [for] images " * 4) == 1
    assert "before the bar" not in screen.getvalue()


def test_the_bar_waits_for_a_run_that_has_written_nothing(tmp_path: Path) -> None:
    with ProgressBar(tmp_path, Console(file=io.StringIO())) as bar:
        bar.update()
    assert bar.last == {}


def test_the_bar_follows_a_run_that_resumes_from_an_earlier_step(config: ResolvedConfig, tmp_path: Path) -> None:
    plan = config.plan()
    with ProgressBar(tmp_path, Console(file=io.StringIO())) as bar:
        for first_step, last in ((0, 6), (2, 7)):
            monitor = Monitor(tmp_path, config, plan, first_step)
            for step in range(first_step + 1, last + 1):
                monitor.scalars(step, {"x": 0.5 + first_step})
                bar.update()
            monitor.close()
    assert (bar.last["step"], bar.last["x"]) == (7, 2.5)


def test_a_report_draws_a_run_and_refuses_other_directories(run: Path, tmp_path: Path) -> None:
    draw(run, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.width > picture.height > 100
        assert len(picture.getcolors(1 << 24) or []) > 10
    with pytest.raises(RunError, match="is not a run directory with metrics"):
        draw(tmp_path, tmp_path / "other.png")
    with pytest.raises(RunError, match=r"cannot be written"):
        draw(run, tmp_path / "no" / "folder.png")


def test_the_stopwatch_leaves_pauses_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 12.0, 17.0, 21.0])  # made, pause begins, pause ends, lap
    monkeypatch.setattr("ssl_dist.training.monitor.time.perf_counter", lambda: next(now))
    watch = Stopwatch(step=5)
    with watch.paused():
        pass
    rates = watch.lap(step=8, batch_size=4, waited_s=3.0)
    assert rates.pop("memory/peak_mb") > 50
    assert rates == {"speed/images_per_s": 12 / 6, "speed/data_wait_share": 0.5}


def test_a_new_monitor_drops_the_lines_after_its_first_step(config: ResolvedConfig, tmp_path: Path) -> None:
    plan = config.plan()
    for first_step, last in ((0, 6), (4, 5)):
        monitor = Monitor(tmp_path, config, plan, first_step)
        for step in range(first_step + 1, last + 1):
            monitor.scalars(step, {"x": float(first_step)})
        monitor.close()
    assert [(line["step"], line["x"]) for line in lines(tmp_path)] == [(1, 0), (2, 0), (3, 0), (4, 0), (5, 4)]
    assert [(event.step, event.value) for event in board(tmp_path).Scalars("x")] == [
        (1, 0),
        (2, 0),
        (3, 0),
        (4, 0),
        (5, 4),
    ]


def test_a_checkpoint_is_written_when_it_is_asked_for(config: ResolvedConfig, tmp_path: Path) -> None:
    asked = iter([False, True, *[False] * 6])
    rarely = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"every_epochs": 100})})
    pretrain(rarely, tmp_path, World(), StopRequests(save=lambda: next(asked)))
    assert [path.name for path in Checkpoints(tmp_path).list()] == ["step-00000008", "step-00000002"]


def test_a_full_disk_behind_the_steps_ends_the_run_with_its_reason(
    config: ResolvedConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: object, file: Path, metadata: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(RunError, match=r"step-0000000\d cannot be written .*No space left"):
        pretrain(config, tmp_path, World(), StopRequests())
