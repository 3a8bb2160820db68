"""The health watch in real runs: what it says, where, how often, and that it changes nothing."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ssl_dist.collectives import World
from ssl_dist.store import ImageStore
from ssl_dist.training.health import HEALTH, Finding, read_health
from ssl_dist.training.health.data_path import Starved
from ssl_dist.training.health.rule import PATIENCE
from ssl_dist.training.health.watch import HealthWatch
from ssl_dist.training.loop import StopRequests, pretrain
from ssl_dist.training.monitor import Monitor
from tests.helpers import resolved_config

WAIT = "speed/data_wait_share"


def lines(shares: dict[range, float]) -> list[dict[str, float]]:
    return [{"step": step, "epoch": step / 10, WAIT: share} for steps, share in shares.items() for step in steps]


def said(watch: HealthWatch, given: list[dict[str, float]]) -> list[int]:
    return [one.step for line in given for one in watch.look(line)]


WAVERING = lines({range(10, 60, 10): 0.9, range(60, 200, 10): 0.0, range(200, 900, 10): 0.9, range(900, 990, 10): 0.0})


def test_a_sentence_is_said_again_once_the_run_was_well_and_is_twice_as_long() -> None:
    assert said(HealthWatch([Starved("store")]), lines({range(10, 2000, 10): 0.9})) == [50]
    assert said(HealthWatch([Starved("store")]), WAVERING) == [50, 50 + PATIENCE]
    flood = [{"step": step, "epoch": 0, WAIT: 0.9 * (step // 10 % 2)} for step in range(1, 100_000)]
    assert len(said(HealthWatch([Starved("store")]), flood)) < 12  # each needs twice the steps


@pytest.mark.parametrize("cut", [10, 49, 55, 120, 240, 250, 255, 500, 950])
def test_an_interrupted_run_is_judged_as_an_undisturbed_one(cut: int) -> None:
    first = HealthWatch([Starved("store")])
    before = [one for line in WAVERING if line["step"] <= cut for one in first.look(line)]
    past = [line for line in WAVERING if line["step"] <= cut]
    second = HealthWatch([Starved("store")], past, before)
    after = [one for line in WAVERING if line["step"] > cut for one in second.look(line)]
    assert [one.step for one in (*before, *after)] == [50, 50 + PATIENCE]


def test_a_run_of_an_earlier_version_is_judged_by_its_lines() -> None:
    watch = HealthWatch([Starved("store")], lines({range(10, 100, 10): 0.9}))
    assert said(watch, lines({range(100, 200, 10): 0.9})) == [100]


def test_findings_are_read_back_without_what_is_torn_or_of_another_kind(tmp_path: Path) -> None:
    assert read_health(tmp_path) == []
    found = Finding(3, 0.5, "starved", "Zeile mit Ümlaut")
    text = json.dumps(found._asdict())
    (tmp_path / HEALTH).write_text(f'{text}\n[1]\nno json\n{{"step": 4}}\n{text[:20]}')
    assert read_health(tmp_path) == [found]


@pytest.fixture(scope="module")
def starved(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stop a run whose reading stalls after 14 of its 20 steps, and finish it."""
    run = tmp_path_factory.mktemp("starved")
    config = resolved_config(small_store, epochs=5, probe=None, monitor__every_steps=2, batch__micro=12)
    with pytest.MonkeyPatch.context() as patch:
        read = ImageStore.gather

        def stalled(store: ImageStore, ids: np.ndarray) -> np.ndarray:
            time.sleep(0.4)  # a step takes 0.01 s, and on a busy machine 0.1 s
            return read(store, ids)

        patch.setattr(ImageStore, "gather", stalled)
        count = iter(range(1, 20))
        assert pretrain(config, run, World(), StopRequests(stop=lambda: next(count) == 14))["step"] == 14
        with (run / HEALTH).open("a") as file:  # a line beyond the checkpoint, as a killed run leaves it
            file.write('{"step": 16, "epoch": 1, "rule": "collapse", "text": "later"}\n{"step"')
        assert pretrain(config, run, World(), StopRequests())["step"] == 21
    return run


def test_a_stalled_data_path_is_named_once_and_everywhere(starved: Path) -> None:
    [found] = read_health(starved)
    assert (found.rule, found.step) == ("starved", 10)  # five logs
    assert "of its time" in found.text
    events = EventAccumulator(str(starved / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    [event] = events.Tensors("health/starved/text_summary")
    assert event.step == 10
    assert event.tensor_proto.string_val[0].decode() == found.text


def test_rules_of_settings_are_said_once_in_a_runs_life(
    small_store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = resolved_config(small_store, optim={"name": "lars", "lr": 0.1, "weight_decay": 0.0, "warmup_epochs": 0})
    with caplog.at_level(logging.WARNING, "ssl_dist.training"):
        for first_step in (0, 0, 7):
            Monitor(tmp_path, config, config.plan(), first_step).close()
    assert [(one.step, one.rule) for one in read_health(tmp_path)] == [(0, "lars-without-decay")]
    assert caplog.text.count("LARS without weight decay") == 1


def named_within(run: Path, rule: str, step: int) -> Finding:
    found = next(one for one in read_health(run) if one.rule == rule)
    assert found.step <= step, found
    return found


def test_a_too_low_temperature_is_named_within_100_steps_after_warm_up(small_store: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 40, "probe": None, "monitor__every_steps": 5, "optim__warmup_epochs": 5}
    settings |= {"batch": {"size": 48, "micro": 48}, "optim__name": "adamw", "optim__lr": 0.003}
    settings |= {"method__projection_dim": 128}
    for temperature in (0.02, 0.2):
        run = tmp_path / str(temperature)
        run.mkdir()
        config = resolved_config(small_store, method__temperature=temperature, **settings)
        pretrain(config, run, World(), StopRequests())
    found = named_within(tmp_path / "0.02", "low-temperature", config.plan().warmup_steps + 100)
    assert "temperature 0.02 is low; try method.temperature 0.1 to 0.5" in found.text
    assert read_health(tmp_path / "0.2") == []


def test_a_planted_collapse_is_named_within_100_steps_after_warm_up(small_store: Path, tmp_path: Path) -> None:
    """VICReg without the terms that hold the embeddings apart."""
    method = {"name": "vicreg", "variance_weight": 0.0, "covariance_weight": 0.0, "projection_layers": 1}
    for name, more in (("sick", {}), ("well", {"variance_weight": 25.0, "covariance_weight": 1.0})):
        (tmp_path / name).mkdir()
        settings = {"method": {**method, **more, "projection_dim": 16}, "batch": {"size": 48, "micro": 48}}
        settings |= {"optim": {"name": "adamw", "lr": 0.05, "warmup_epochs": 5}, "epochs": 30, "probe": None}
        config = resolved_config(small_store, monitor__every_steps=5, **settings)
        pretrain(config, tmp_path / name, World(), StopRequests())
    named_within(tmp_path / "sick", "collapse", config.plan().warmup_steps + 100)
    assert "collapse" not in {one.rule for one in read_health(tmp_path / "well")}


def test_the_watch_changes_no_bit_and_takes_less_than_a_millisecond_a_line(
    small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = resolved_config(small_store, epochs=2, monitor__every_steps=1, probe=None)
    spent, look = [], HealthWatch.look

    def timed(watch: HealthWatch, line: dict[str, float]) -> list[Finding]:
        began = time.process_time()
        found = look(watch, line)
        spent.append(time.process_time() - began)
        return found

    monkeypatch.setattr(HealthWatch, "look", timed)
    weights = []
    for name in ("watched", "not"):
        (tmp_path / name).mkdir()
        torch.manual_seed(0)
        pretrain(config, tmp_path / name, World(), StopRequests())
        weights.append((tmp_path / name / "checkpoints" / "step-00000008" / "model.safetensors").read_bytes())
        monkeypatch.setattr("ssl_dist.training.loop.embedding_statistics", lambda pairs: {})
        monkeypatch.setattr(HealthWatch, "look", lambda watch, line: [])
    assert weights[0] == weights[1]
    assert sorted(spent)[len(spent) // 2] < 1e-3
