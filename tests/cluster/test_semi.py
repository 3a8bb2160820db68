"""Semi-supervised learning at several ratios: which images each run sees, its length, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssl_dist.config import ResolvedConfig
from ssl_dist.data import resolve
from ssl_dist.errors import ConfigError, StoreError
from ssl_dist.evaluate.pseudo_labels import predict
from ssl_dist.store import ImageStore
from tests.cluster.pipeline_commands import invoke, settings_of


def semi(run: object, store: Path, out: Path, *more: object) -> Any:
    options = ["--labels", 9, "--ratios", "1:1,1:4", "--batch", 4, "--unlabelled-batch", 8, "--epochs", 8]
    command = ["evaluate", "semi", run, "--train", store, "--test", store, *options, "--run-dir", out, "--json"]
    return json.loads(invoke(*command, *more).stdout)


def plan_of(run: Path) -> Any:
    return resolve(ResolvedConfig.from_tree(settings_of(run), "config.json"))


def test_each_ratio_has_its_images_and_every_run_the_same_steps(
    launched: list[str], pretrained: Path, small_store: Path, tmp_path: Path
) -> None:
    found = semi(pretrained, small_store, tmp_path / "out")
    rows = [(row["method"], row["ratio"]) for row in found["rows"]]
    assert rows == [
        ("supervised", 0),
        *(("fixmatch", ratio) for ratio in (1, 4)),
        *(("pseudo-labels", ratio) for ratio in (1, 4)),
    ]
    truth, unlabelled = ImageStore(small_store).labels, dict[int, set[int]]()
    for method, ratio in rows:
        [run] = [
            Path(row["runs"][0]["run"]) for row in found["rows"] if (row["method"], row["ratio"]) == (method, ratio)
        ]
        data = plan_of(run)
        assert data.config.plan().total_steps == 8 * 9 // 4
        labels = data.sample_plan.labels
        if method == "pseudo-labels":
            assert (labels >= 0).sum() == 9 + 9 * ratio, "all unlabelled images have a label by now"
            continue
        drawn = set(np.flatnonzero(labels >= 0).tolist())
        assert np.bincount(truth[list(drawn)]).tolist() == [3, 3, 3]
        unlabelled[ratio] = set(np.flatnonzero(labels == -1).tolist())
        assert len(unlabelled[ratio]) == 9 * ratio
        assert data.config.facts.num_samples == (9 if method == "supervised" else 9 + 9 * ratio)
    assert unlabelled[1] < unlabelled[4]
    fixmatch = settings_of(Path(found["rows"][1]["runs"][0]["run"]))
    assert fixmatch["batch"].items() >= {"size": 12, "labelled": 4, "micro": 6}.items()
    assert fixmatch["backbone"]["weights"].startswith(str(pretrained))


def test_labels_of_unlabelled_images_reach_no_run(
    launched: list[str], pretrained: Path, small_store: Path, tmp_path: Path
) -> None:
    """The pseudo-labels are the classifier's, and label files name no label beyond those that were drawn."""
    semi(pretrained, small_store, tmp_path / "out")
    for file in (tmp_path / "out").glob("*.npy"):
        assert (np.load(file) >= 0).sum() == 9
    [rounds] = [folder for folder in (tmp_path / "out").glob("*pseudo-labels-1-4*") if folder.is_dir()]
    before, after = (np.load(rounds / f"labels-{number}.npy") for number in (0, 1))
    assert (after[before >= 0] == before[before >= 0]).all()
    added = np.flatnonzero(before == -1)
    answers = predict(rounds / "round-0", ImageStore(small_store), added).argmax(1).numpy()
    assert (after[added] == answers).all()
    assert (answers != ImageStore(small_store).labels[added]).any()
    assert (after == -2).sum() == (before == -2).sum() == 51 - 9 - 36


def test_what_was_finished_is_not_repeated(
    launched: list[str], pretrained: Path, small_store: Path, tmp_path: Path
) -> None:
    first = semi(pretrained, small_store, tmp_path / "out", "--from", "run,random")
    number = len(launched)
    assert number == 2 * (1 + 2 + 2 * 2)
    assert semi(pretrained, small_store, tmp_path / "out", "--from", "run,random") == first
    assert len(launched) == number
    np.save(tmp_path / "out" / "9-labels-seed-0-1-1.npy", np.zeros(51, np.int32))
    with pytest.raises(
        ConfigError, match=r"9-labels-seed-0-1-1\.npy has other labels than these stores and options give"
    ):
        semi(pretrained, small_store, tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--ratios", "1:5"], ConfigError, r"--ratios 1:5 of 9 labelled images needs 45 others, and .* has 42"),
        (["--ratios", "5:1"], ConfigError, "--ratios 5:1: write each as 1:N once"),
        (["--ratios", "1:0"], ConfigError, "--ratios 1:0: write each as 1:N once"),
        (["--ratios", "1:1,1:1"], ConfigError, "--ratios 1:1,1:1: write each as 1:N once"),
        (["--labels", "52"], ConfigError, "--labels 52: 52 of 51 labelled images"),
        (["--epochs", 0.1], ConfigError, r"--epochs 0\.1 of 9 labels are less than one batch of 4"),
        (["--unlabelled-batch", 19], ConfigError, r"--unlabelled-batch 19: at a ratio of 1:1 .* set it to 18 or less"),
        (["--threshold", 2], ConfigError, r"method\.threshold: .*less than 1"),
        (["--set", "method.num_classes=3"], ConfigError, r"--set method\.num_classes: this command sets it"),
        (["--set", "batch.size=3"], ConfigError, r"--set batch\.size: this command sets it"),
        (["--set", "epochs=3"], ConfigError, "--set epochs: this command sets it"),
        (["--set", "augment.recipe=none"], ConfigError, r"--set augment\.recipe: this command sets it"),
        (["--set", "augment={recipe: none}"], ConfigError, "--set augment: a section given whole would drop"),
        (["--set", "optim={name: sgd, lr: 0.1}"], ConfigError, "--set optim: a section given whole would drop"),
        (["--set", "backbone.weights=x"], ConfigError, r"--set backbone\.weights: network and weights are those of"),
        (["--from", "scratch"], ConfigError, "--from scratch: it is run, random, or run,random"),
        (["--test", "nowhere"], StoreError, "nowhere"),
    ],
)
def test_it_is_refused_before_anything_trains(
    launched: list[str],
    pretrained: Path,
    small_store: Path,
    tmp_path: Path,
    arguments: list[object],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        semi(pretrained, small_store, tmp_path / "out", *arguments)
    assert not launched


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_unlabelled_images_are_learned_from(
    local_ray: None, pretrained: Path, small_store: Path, tmp_path: Path
) -> None:
    found = semi(pretrained, small_store, tmp_path / "out", "--epochs", 60, "--lr", 0.003, "--ratios", "1:4")
    assert [row["method"] for row in found["rows"]] == ["supervised", "fixmatch", "pseudo-labels"]
    assert min(row["top1"] for row in found["rows"]) > 0.5, "by chance it is a third"
    assert {row["runs"][0]["step"] for row in found["rows"]} == {60 * 9 // 4}
