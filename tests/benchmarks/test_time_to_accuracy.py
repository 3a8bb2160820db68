"""The benchmark of accuracy over time trains by the command line, measures each checkpoint, and repeats nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from benchmarks import lightly_training, time_to_accuracy
from benchmarks.time_to_accuracy import POINTS, Training, main
from ssl_dist.config import RunConfig
from ssl_dist.errors import RunError
from tests.helpers import RECIPE


def recipe_in(folder: Path) -> str:
    recipe = {**yaml.safe_load(RECIPE), "data": {"store": "stores/none"}, "epochs": 6}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    return str(folder / "tiny.yaml")


@pytest.mark.slow  # a run from the command line
def test_each_checkpoint_is_measured_and_a_finished_training_stays(
    small_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name, docs = recipe_in(tmp_path), tmp_path / "docs"
    docs.mkdir()
    for _ in range(2):
        main(small_store, small_store, tmp_path / "out", name, seeds=1, docs=docs)
    [line] = [json.loads(one) for one in capfd.readouterr().out.splitlines() if one.startswith("{")]
    seconds = [one[0] for one in line["points"]]
    assert len(seconds) in (POINTS, POINTS + 1), "one more is of the last step, where a sixth is not a whole step"
    assert 0 < seconds[0] < seconds[-1] < 600
    assert seconds == sorted(seconds)
    assert all(0 < top1 <= 1 for _, top1 in line["points"])
    assert (docs / "performance.md").read_text().count(f"| {name} |") == len(seconds)
    assert (docs / "time-to-accuracy.png").stat().st_size > 1000


@pytest.mark.slow
def test_weights_of_lightlys_loop_are_measured_as_ours(small_store: Path, tmp_path: Path) -> None:
    pytest.importorskip("lightly.transforms")
    lightly_training.main(tmp_path / "lightly", small_store, seed=0, epochs=1, recipe=recipe_in(tmp_path))
    encoders = list(time_to_accuracy.lightly_encoders(tmp_path / "lightly"))
    weights = [next(encoder.parameters()).sum().item() for _, encoder in encoders]
    assert len(set(weights)) == len(weights) > 1, "training has moved them"


def test_a_training_that_was_stopped_or_is_another_one_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    training = Training("simclr-cifar10", 0, tmp_path)
    assert training.points == []
    training.directory.mkdir()
    with pytest.raises(RunError, match="delete it, its times are not whole"):
        time_to_accuracy._train(training, ["false"])
    training.directory.rmdir()
    time_to_accuracy._train(training, ["true"])
    time_to_accuracy._train(training, ["true"])
    with pytest.raises(RunError, match="was trained by another command"):
        time_to_accuracy._train(training, ["false"])


def test_the_recipes_that_it_names_exist() -> None:
    for name in (time_to_accuracy.FAST, time_to_accuracy.USUAL, lightly_training.RECIPE):
        assert RunConfig.load(name).epochs > 0
