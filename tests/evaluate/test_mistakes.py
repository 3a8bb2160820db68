"""A report's numbers are scikit-learn's, and its answer to where wrong answers lie is counted by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_dist.checkpoint import State
from ssl_dist.evaluate import Knn, compare
from ssl_dist.evaluate.mistakes import CentreRanks, centre_ranks
from ssl_dist.report import classification
from ssl_dist.store import ImageStore, build
from tests.command import Command
from tests.conftest import write_images
from tests.helpers import save, small_config

ODD = r"$a$ $\foo$"  # matplotlib would read it as a formula, and a wrong one


def test_ranks_of_centres_are_counted() -> None:
    """Classes 1, 3 and 4 lie at 0, 90 and 45 degrees; 4's images differ in length, which does not count."""
    train = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [9.0, 9.0]])
    labels = np.array([1, 1, 3, 4, 4])
    test = torch.tensor([[1.0, 0.1], [1.0, 0.1], [0.0, 1.0], [1.0, 0.9], [1.0, 0.0], [1.0, 1.0]])
    truth = np.array([3, 4, 1, 4, 1, 7])  # the last is of a class that the training images lack
    given = np.array([1, 1, 4, 4, 1, 4])
    # wrong ones: 3 as 1 (ranks 3, 1), 4 as 1 (2, 1), 1 as 4 (3, 2)
    found = centre_ranks(train, test, labels, truth, given)
    assert found == CentreRanks(3, 2 / 3, 1 / 3, 8 / 3, pytest.approx((2.5 + 2.5 + 2) / 3))
    assert centre_ranks(train, test, labels, truth, truth) is None


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Return a run with random weights, a training store, and a test store with a class more."""
    folder = tmp_path_factory.mktemp("mistakes")
    for name, seed in (("train", 0), ("test", 1)):
        write_images(folder / name, num_classes=3, per_class=9, seed=seed)
        (folder / name / "class1").rename(folder / name / "accuracy")
    (folder / "test" / ODD).mkdir()
    Image.new("RGB", (16, 16), (200, 10, 10)).save(folder / "test" / ODD / "0.png")
    for name in ("train", "test"):
        build(folder / name, folder / f"{name}.store", workers=1)
    config = small_config(folder / "train.store")
    save(State(dict(config.initial_method().state_dict()), {}), folder / "run", 1, config)
    return folder / "run", folder / "train.store", folder / "test.store"


def test_the_files_of_a_report_agree_with_the_answers(evaluated: tuple[Path, Path, Path], tmp_path: Path) -> None:
    run, train, test = evaluated
    result = compare(run, train, test, Knn(k=5))
    classification.write(result, tmp_path / "new" / "report")
    assert {file.name for file in (tmp_path / "new" / "report").iterdir()} == set(classification.FILES)
    found = json.loads((tmp_path / "new" / "report" / "classification.json").read_text())
    given, truth = result.rows[0].answers.classes[:, 0], result.test.labels
    assert found["class_names"] == ["accuracy", "class0", "class2", ODD]
    assert sum(map(sum, found["confusion"])) == len(truth) == 28
    assert [found["confusion"][k][k] for k in range(4)] == [int(((given == k) & (truth == k)).sum()) for k in range(4)]
    assert found["classes"][ODD] == {"precision": 0, "recall": 0, "f1-score": 0, "support": 1}
    recall = ((given == 0) & (truth == 0)).sum() / 9
    assert found["classes"]["accuracy"]["recall"] == pytest.approx(recall), "the class of this name, not the average"
    wrong = found["mistakes"]
    assert len(wrong) == int((given != truth).sum()) > 0
    confidences = [one["confidence"] for one in wrong]
    assert confidences == sorted(confidences, reverse=True)
    store = ImageStore(test)
    assert [one["true"] for one in wrong] == [store.class_names[store.labels[one["id"]]] for one in wrong]
    assert [one["key"] for one in wrong] == store.keys_at(np.array([one["id"] for one in wrong]))
    assert "precision" in (tmp_path / "new" / "report" / "classification.txt").read_text()
    for name in ("confusion.png", "mistakes.png"):
        assert min(Image.open(tmp_path / "new" / "report" / name).size) > 100


def test_the_commands_print_one_table_for_all_rows(
    command: Command, evaluated: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    run, train, test = map(str, evaluated)
    stores = ("--train", train, "--test", test)
    options = ("--k", 1, "--distance", "euclidean", "--equal-votes", "--features", "backbone,head-1")
    report = ("--baselines", "random,pixels,pca", "--report", tmp_path / "report")
    found = command("evaluate", "knn", run, *stores, *options, *report, "--json")
    assert found.code == 0, found.err
    assert len(found.json["rows"]) == 6
    assert found.json["report"]["summary"].startswith("Of ")
    assert "the class of the nearest by s = -(distance squared) / 2; nothing" in found.json["protocol"]
    several = command("evaluate", "knn", run, *stores, "--k", "1, 3", "--json")
    one, three = several.json["evaluations"]
    assert (one["evaluation"], three["evaluation"]) == ("kNN, k = 1", "kNN, k = 3")
    assert command("evaluate", "knn", run, *stores, "--k", 3, "--json").json == three
    assert "the 3 nearest by cosine similarity s vote, with weights exp(s / 0.1)" in three["protocol"]
    few = command("evaluate", "linear", run, *stores, "--labels", "50%", "--seeds", 2, "--json")
    assert few.code == 0, few.err
    assert "learned from 14 labels, drawn from each class, of the 27 labelled images of" in few.json["protocol"]
    assert [len(row["repeats"]) for row in few.json["rows"]] == [2, 2]
    fixed = command("evaluate", "knn", run, *stores, "--baselines", "none", "--seeds", 3, "--json")
    assert "seeds" not in fixed.json["protocol"], "nothing was repeated"
    table = command("evaluate", "linear", run, *stores, "--baselines", "none", "--l2", 0.1)
    assert "penalty 0.1; nothing was chosen" in " ".join(table.out.split())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--k", "0"), "--k 0: it is a number of 1 or more, or several, each once, as 1,20"),
        (("--k", "1,1"), "--k 1,1: it is a number"),
        (("--k", "few"), "--k few: it is a number"),
        (("--k", ""), "--k : it is a number"),
        (("--k", "1,2", "--report", "r"), "--report is on the answers of one number of voters, and --k names 2"),
        (("--equal-votes", "--temperature", "0.1"), "--equal-votes gives all votes one weight, and --temperature 0.1"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    command: Command, evaluated: tuple[Path, Path, Path], wrong: tuple[str, ...], message: str
) -> None:
    run, train, test = map(str, evaluated)
    done = command("evaluate", "knn", run, "--train", train, "--test", test, *wrong)
    assert done.code == 2
    assert done.err.startswith(f"error: {message}")


@pytest.mark.parametrize(
    "arguments",
    [
        "evaluate knn {run} --train {train} --test {test} --baselines none",
        "evaluate linear {run} --train {train} --test {test} --report {run}/report",
        "evaluate transfer {run} {train}",
        "evaluate all {run} --train {train} --test {test} --minutes 0.1",
        "evaluate map {run} --store {train} --perplexity 3",
        "label-request {run} {train} --count 1 --strategy coreset",
    ],
)
def test_features_that_are_no_numbers_are_refused(
    command: Command, evaluated: tuple[Path, Path, Path], tmp_path: Path, arguments: str
) -> None:
    """0 % of right answers would be said of them, which is a figure made of nothing."""
    _, train, test = evaluated
    broken = {name: tensor / 0 for name, tensor in small_config(train).initial_method().state_dict().items()}
    save(State(broken, {}), tmp_path, 7, small_config(train))
    if "label-request" in arguments:
        (tmp_path / "few.csv").write_text("key,label\nclass0/000.png,\nclass0/001.png,class0\n")
        shutil.copytree(train, tmp_path / "store")
        assert command("store", "label", tmp_path / "store", tmp_path / "few.csv").code == 0
        train = tmp_path / "store"
    found = command(*(one.format(run=tmp_path, train=train, test=test) for one in arguments.split()))
    assert (found.code, found.out) == (2, "")
    assert "step-00000007: its features are not finite numbers: take an earlier checkpoint" in found.err
    assert "Traceback" not in found.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--labels", 28), "--labels 28: 28 of 27 labelled images in 3 classes: ask for 3 to 27"),
        (("--labels", "10-per-class"), "has 9 labelled images: ask for 1 to 9 of each class"),
        (("--features", "head-2"), "this run's has 2 (method.projection_layers)"),
        (("--layer", "conv9"), "backbone resnet8 has no such layer"),
        (("--baselines", "noise"), "--baselines noise: it is some of random, pixels, pca, or none alone"),
        (
            ("--report", f"{__file__}/report"),
            f"{__file__}/report cannot be made: {__file__} is no folder that can be written",
        ),
    ],
)
def test_a_wrong_option_is_one_line(
    command: Command, evaluated: tuple[Path, Path, Path], options: tuple[object, ...], message: str
) -> None:
    run, train, test = map(str, evaluated)
    found = command("evaluate", "linear", run, "--train", train, "--test", test, *options)
    assert (found.code, found.out) == (2, "")
    assert message in found.err
    assert "Traceback" not in found.err
