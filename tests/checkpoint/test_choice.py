"""A checkpoint is named by a run, its folder of checkpoints or its own directory, and by newest, best or a step."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from ssl_dist.checkpoint import Checkpoints, State, locate, locate_all, pretrained, run_directory
from ssl_dist.config import ResolvedConfig
from ssl_dist.errors import CheckpointError, ConfigError, RunError
from tests.command import Command
from tests.helpers import resolved_config, save_scored

SCORES = {2: 0.25, 4: 0.75, 6: 0.75, 8: 0.5}  # the newest of the best is kept as the best


@pytest.fixture(scope="module")
def run(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a run's checkpoints of four steps, each with weights of its own."""
    run = tmp_path_factory.mktemp("choice") / "run"
    save_scored(run, small_store, SCORES)
    return run


PLACES = (".", "checkpoints", "checkpoints/../checkpoints/", "checkpoints/step-00000004/../..")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("choice", "step"), [("newest", 8), ("best", 6), (4, 4), (2, 2)])
def test_one_of_several_is_chosen(run: Path, place: str, choice: Any, step: int) -> None:
    assert locate(run / place, choice).step == step


def test_one_checkpoint_is_itself_and_none_is_said(run: Path, tmp_path: Path) -> None:
    assert locate(run / "checkpoints" / "step-00000004").step == 4
    for choice in ("best", 6):
        with pytest.raises(RunError, match=rf"is one checkpoint, and {choice} chooses among a run's"):
            locate(run / "checkpoints" / "step-00000004", choice)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="has no checkpoint of step 5; the steps are: 8, 6, 4, 2"):
        locate(run, 5)
    with pytest.raises(RunError, match="is not a run directory"):
        locate(run / "checkpoints" / "step-00000005")
    (tmp_path / "checkpoints").mkdir()
    for place in (tmp_path, tmp_path / "checkpoints"):
        with pytest.raises(RunError, match="holds no checkpoint"):
            locate(place)


@pytest.mark.parametrize("place", PLACES)
def test_all_of_a_run_come_oldest_first(run: Path, place: str) -> None:
    assert [one.step for one in locate_all(run / place)] == [2, 4, 6, 8]
    assert run_directory(run / place).resolve() == run


def test_one_checkpoint_is_all_and_knows_its_run(run: Path, tmp_path: Path) -> None:
    one = run / "checkpoints" / "step-00000004"
    assert [found.step for found in locate_all(one)] == [4]
    assert run_directory(one) == run
    alone = shutil.copytree(one, tmp_path / "mine")
    assert run_directory(alone) == tmp_path


def test_all_are_those_that_verify(small_store: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no checkpoint"):
        locate_all(tmp_path)
    config = resolved_config(small_store, probe=None)
    for step in (2, 4):
        Checkpoints(tmp_path).save(step, config, State(config.initial_method().state_dict(), {}))
    (Checkpoints(tmp_path).path(4) / "model.safetensors").write_bytes(b"rubbish")
    assert [one.step for one in locate_all(tmp_path)] == [2]
    (Checkpoints(tmp_path).path(2) / "model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints of .* verifies"):
        locate_all(tmp_path)


def test_the_best_is_the_best_that_verifies(small_store: Path, tmp_path: Path) -> None:
    config = resolved_config(small_store, probe=None, checkpoint__keep=4)
    state = State(config.initial_method().state_dict(), {})
    Checkpoints(tmp_path).save(1, config, state)
    with pytest.raises(RunError, match=r"no checkpoint .* has the online probe's score, so none is the best"):
        locate(tmp_path, "best")
    for step, score in ((2, 0.5), (3, 0.75)):
        Checkpoints(tmp_path).save(step, config, state, score)
    (Checkpoints(tmp_path).path(3) / "model.safetensors").write_bytes(b"rubbish")
    assert locate(tmp_path, "best").step == 2
    (Checkpoints(tmp_path).path(2) / "model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints with a score"):
        locate(tmp_path, "best")


def test_training_starts_from_the_chosen_one(small_store: Path, run: Path) -> None:
    def resolved(weights: Path, choice: Any) -> ResolvedConfig:
        backbone = {"name": "resnet8", "stem": "half", "width": 8, "weights": str(weights), "checkpoint": choice}
        return pretrained.resolve(resolved_config(small_store, probe=None, backbone=backbone))

    for choice, step in (("newest", 8), ("best", 6), (4, 4)):
        for place in PLACES:
            chosen = resolved(run / place, choice).backbone
            assert Path(chosen.weights or "").parent.name == f"step-{step:08d}"
            assert chosen.checkpoint == "newest", "the file is one checkpoint's"
    with pytest.raises(ConfigError, match=r"is no run: backbone\.checkpoint chooses among a run's checkpoints"):
        resolved(run / "checkpoints" / "step-00000004" / "model.safetensors", "best")
    with pytest.raises(ConfigError, match="no checkpoint of step 5"):
        resolved(run, 5)


def test_evaluate_takes_each_form(command: Command, run: Path, small_store: Path) -> None:
    stores = ("--train", small_store, "--test", small_store, "--json")
    found = {
        step: command("evaluate", "knn", run / place, *stores, *option).json
        for step, place, option in (
            (8, "checkpoints", ()),
            (6, ".", ("--checkpoint", "best")),
            (4, "checkpoints/step-00000004", ()),
            (2, ".", ("--checkpoint", "2")),
        )
    }
    assert [(step, one["step"]) for step, one in found.items()] == [(8, 8), (6, 6), (4, 4), (2, 2)]
    wrong = command("evaluate", "linear", run, *stores, "--checkpoint", "last")
    assert wrong.code == 2
    assert re.match("error: --checkpoint last: it is newest, best, or a step", wrong.err)
