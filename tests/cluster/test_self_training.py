"""Self-training refuses what it cannot do, keeps the labels of rounds that have begun, and computes nothing in vain."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_dist.errors import ConfigError, StoreError, UsageError
from ssl_dist.evaluate.pseudo_labels import predict
from ssl_dist.store import ImageStore, build
from tests.cluster.pipeline_commands import build_another, invoke, self_train, settings_of
from tests.conftest import write_images


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--test", "nowhere"], UsageError, "nowhere"),
        (["--test", "other"], StoreError, "a label 3, which a classifier of method.num_classes 3 never gives"),
        (["--test", "large"], StoreError, r"large holds \(20, 20, 3\) images"),
        (["--share", 0], ConfigError, "--share 0: it must be more than 0 and at most 1"),
        (["--share", 1.5], ConfigError, r"--share 1\.5: it must be more than 0 and at most 1"),
        (["--set", "data.label_file=null"], ConfigError, "every image has a label"),
        (
            ["--set", "method={name: simclr}", "--set", "augment.recipe=simclr-small"],
            ConfigError,
            "method simclr does not classify: self-train takes fixmatch or supervised",
        ),
    ],
)
def test_self_training_is_refused_before_its_first_round(
    untrained: list[str],
    small_store: Path,
    few_labels: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[object],
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if "other" in arguments:
        build_another(tmp_path / "other")
    if "large" in arguments:
        write_images(tmp_path / "images", num_classes=3, per_class=2, size_px=20)
        build(tmp_path / "images", tmp_path / "large", workers=1)
    with pytest.raises(error, match=message):
        self_train(small_store, few_labels, tmp_path / "rounds", *arguments)
    assert not untrained
    assert not (tmp_path / "rounds").exists()


def test_a_test_store_of_classes_that_the_classifier_has_not_is_refused(
    untrained: list[str], small_store: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "two.npy", np.where(np.arange(51) < 12, np.arange(51) % 2, -1))
    with pytest.raises(StoreError, match=r"a label 2, which a classifier of method\.num_classes 2 never gives"):
        self_train(small_store, tmp_path / "two.npy", tmp_path / "rounds", "--set", "method.num_classes=2")
    assert not untrained


def test_self_training_has_no_test_store_of_its_own(small_store: Path) -> None:
    assert invoke("self-train", "--set", f"data.store={small_store}").exit_code == 2


def test_rounds_keep_the_recipes_data_settings(
    untrained: list[str], small_store: Path, few_labels: Path, tmp_path: Path
) -> None:
    self_train(small_store, few_labels, tmp_path / "rounds", "--set", "data.stratified=true")
    first, second = (settings_of(tmp_path / "rounds" / f"round-{number}") for number in (0, 1))
    assert first["data"]["stratified"]
    assert second["data"]["stratified"]
    assert (first["facts"]["num_samples"], second["facts"]["num_samples"]) == (12, 12 + 4)
    assert second["data"]["label_file"] == str(tmp_path / "rounds" / "labels-1.npy")
    assert first["facts"]["label_digest"] != second["facts"]["label_digest"]


def test_a_round_keeps_the_labels_that_it_began_with(
    untrained: list[str], small_store: Path, few_labels: Path, tmp_path: Path
) -> None:
    here = tmp_path / "rounds"
    self_train(small_store, few_labels, here)
    kept = {number: (here / f"labels-{number}.npy").read_bytes() for number in (0, 1)}
    with pytest.raises(
        ConfigError, match=r"labels-1\.npy has 16 labels, and round 1 has begun .* 32, 20 of them added"
    ):
        self_train(small_store, few_labels, here, "--share", 0.5)
    other = np.load(few_labels)
    other[0] = (other[0] + 1) % 3
    np.save(tmp_path / "other.npy", other)
    with pytest.raises(ConfigError, match=r"labels-0\.npy has 12 labels, and round 0 has begun with them"):
        self_train(small_store, tmp_path / "other.npy", here)
    assert kept == {number: (here / f"labels-{number}.npy").read_bytes() for number in (0, 1)}
    shutil.rmtree(here / "round-1")
    self_train(small_store, few_labels, here, "--share", 0.5)
    assert (np.load(here / "labels-1.npy") >= 0).sum() == 32, "nothing had begun with the others"


def test_nothing_is_predicted_that_no_round_learns_from(
    untrained: list[str], small_store: Path, few_labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def counted(run: Path, store: ImageStore, ids: np.ndarray) -> torch.Tensor:
        asked.append((run.name, len(ids)))
        return predict(run, store, ids)

    monkeypatch.setattr("ssl_dist.evaluate.pseudo_labels.predict", counted)
    self_train(small_store, few_labels, tmp_path / "rounds")
    assert asked == [("round-0", 51), ("round-0", 39), ("round-1", 51)], "the test store, what has no label, and again"
    asked.clear()
    self_train(small_store, few_labels, tmp_path / "all", "--share", 1, "--rounds", 3)
    assert asked == [("round-0", 51), ("round-0", 39), ("round-1", 51)], "then every image has a label"


def test_predictions_are_computed_on_the_fastest_device(
    untrained: list[str], small_store: Path, few_labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("meta")  # which has nothing to copy back
    monkeypatch.setattr("ssl_dist.evaluate.pseudo_labels.fastest_device", lambda: device)
    with pytest.raises(NotImplementedError, match="meta"):
        self_train(small_store, few_labels, tmp_path / "rounds")
