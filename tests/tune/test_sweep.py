"""A sweep's definition: rungs and budgets in images, refusals before it costs anything, separate trials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ssl_dist import store
from ssl_dist.errors import ConfigError, RunError
from ssl_dist.settings import ProbeConfig
from tests.conftest import write_images
from tests.helpers import resolved_config
from tune.space import Domain
from tune.sweep import Sweep
from tune.trial_files import Point, path_of, read_points

SPACE = {"method.temperature": Domain(choice=(0.1, 0.2)), "epochs": Domain(choice=(2, 18))}


def make(path: Path, **options: Any) -> Sweep:
    return Sweep.make(**{"recipe": resolved_config(path), "space": SPACE, **options})


def test_rungs_are_in_epochs_of_the_longest_trial(small_store: Path) -> None:
    assert make(small_store).probe_every_epochs == 2  # 18 / 3^2
    assert make(small_store, reduction=2).probe_every_epochs == 2  # 18 / 2^2 would miss the trials of 2 epochs
    assert make(small_store, rung_epochs=0.5).probe_every_epochs == 0.5


def test_expected_images_of_asha(small_store: Path) -> None:
    sweep = make(small_store, rung_epochs=2)
    short, long = sweep.config({"epochs": 2}), sweep.config({"epochs": 18})
    assert sweep.budget_images(long) == 18 * 51
    assert sweep.expected_images(short) == 2 * 51
    # to 2 epochs, a third of them to 6, a ninth to 18
    assert sweep.expected_images(long) == pytest.approx(51 * (2 + 4 / 3 + 12 / 9))
    assert make(small_store, scheduler="none").expected_images(long) == 18 * 51


def test_every_sample_is_tried_before_anything_runs(small_store: Path) -> None:
    with pytest.raises(ConfigError, match="temperature"):
        make(small_store, space={"method.temperature": Domain(choice=(0.1, -1.0))}, search="grid").check()
    with pytest.raises(ConfigError, match=r"sample lr=true: optim\.lr: Input should be a valid number"):
        make(small_store, space={"optim.lr": Domain(choice=(0.1, True))}, search="grid").check()
    with pytest.raises(ConfigError, match="less than one batch"):
        make(small_store, space={"epochs": Domain(choice=(0.01,))}).check()


def test_the_training_loss_does_not_rank(small_store: Path) -> None:
    with pytest.raises(ConfigError, match="NT-Xent depends on temperature and batch size"):
        make(small_store, objective="train/loss")
    with pytest.raises(ConfigError, match="objective"):
        make(small_store, objective="beauty")


def test_a_recipe_whose_runs_end_by_their_own_probe_is_refused(small_store: Path) -> None:
    recipe = resolved_config(small_store)
    probe = ProbeConfig(kind="validation", label_file="validation.npy", patience=2)
    with pytest.raises(ConfigError, match=r"probe.kind validation: .* or --set probe=null"):
        Sweep.make(recipe=recipe.model_copy(update={"probe": probe}), space=SPACE)


def test_labels_are_needed_for_knn_and_not_for_rankme(tmp_path: Path) -> None:
    write_images(tmp_path / "images", num_classes=1, per_class=51)
    store.build(tmp_path / "images" / "class0", tmp_path / "flat", workers=1)
    with pytest.raises(ConfigError, match="choose rankme or lidar"):
        make(tmp_path / "flat").check()
    make(tmp_path / "flat", objective="rankme").check()


def test_trials_that_differ_only_in_temperature_share_nothing(small_store: Path, tmp_path: Path) -> None:
    sweep = make(small_store)
    paths = {path_of(tmp_path, sweep.config({"method.temperature": t, "epochs": 2})) for t in (0.1, 0.2, 0.20001)}
    assert len(paths) == 3


def test_a_sweep_is_read_back_as_it_was_written(small_store: Path, tmp_path: Path) -> None:
    sweep = make(small_store, search="grid", objective="linear")
    sweep.write(tmp_path)
    assert Sweep.read(tmp_path) == sweep
    with pytest.raises(RunError, match="is not a sweep"):
        Sweep.read(tmp_path / "nowhere")


def test_points_are_at_the_rungs_whatever_the_batch_size(small_store: Path, tmp_path: Path) -> None:
    """The first step at or beyond a rung passes it; its images count as the rung's, so that trials can be compared."""
    sweep = make(small_store, rung_epochs=2)
    config = sweep.config({"epochs": 5, "batch.size": 20})
    steps = config.plan().total_steps
    assert steps == 12
    lines = [f'{{"step": {step}, "probe/knn": 0.{step}}}' for step in (0, 6, 11, 12)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 12, "probe/k')
    assert read_points(sweep, config, tmp_path) == [Point(102, 0.6, 6), Point(204, 0.11, 11), Point(255, 0.12, 12)]
