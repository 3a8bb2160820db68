"""One encoder over several stores, and all measures within some minutes, on a run with random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.nn.functional import normalize

from ssl_dist.checkpoint import State
from ssl_dist.encoder import load_encoder
from ssl_dist.evaluate import everything
from ssl_dist.evaluate.everything import Costs
from ssl_dist.evaluate.labelled import Labelled, split_in_two
from ssl_dist.report import evaluation
from ssl_dist.report.page.evaluated import Gallery
from ssl_dist.store import ImageStore, build
from tests.command import Command
from tests.conftest import write_images
from tests.helpers import resolved_config, save, small_config

PARTS = (("train", 36), ("test", 18))


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Make a training store, a test store, another one, one without labels and one of another size; and a run."""
    folder = tmp_path_factory.mktemp("everything")
    for number, (name, classes, each) in enumerate((("train", 3, 12), ("test", 3, 6), ("other", 2, 9))):
        write_images(folder / name, num_classes=classes, per_class=each, seed=number)
        build(folder / name, folder / f"{name}.store", workers=1)
    build(folder / "train" / "class0", folder / "plain.store", workers=1)
    build(folder / "train", folder / "small.store", size_px=8, workers=1)
    config = small_config(folder / "train.store")
    save(State(dict(config.initial_method().state_dict()), {}), folder / "run", 1, config)
    (folder / "run" / "metrics.jsonl").write_text('{"step": 1, "epoch": 0.5, "train/loss": 2.0}\n')
    return {path.stem: path for path in (*folder.glob("*.store"), folder / "run")}


def test_transfer_prints_a_row_for_each_encoder_on_each_store(command: Command, stores: dict[str, Path]) -> None:
    found = command("evaluate", "transfer", stores["run"], stores["train"], stores["other"], "--k", 3, "--json")
    assert found.code == 0, found.err
    first, second = found.json["stores"]
    assert [one["evaluation"] for one in first["results"]] == ["kNN, k = 3", "linear probe"]
    assert [(one["num_train"], one["num_test"]) for one in (first["results"][0], second["results"][0])] == [
        (27, 9),
        (14, 4),
    ]
    assert first["results"][1]["protocol"].startswith(
        f"Accuracy on the 9 labelled images of the held-out part of {stores['train']}, learned from the 27 labelled"
        f" images of the rest of {stores['train']}: logistic regression"
    )


def test_the_two_parts_of_a_store_have_no_image_in_common(stores: dict[str, Path]) -> None:
    config = resolved_config(stores["train"])
    known, asked = split_in_two(stores["train"], config.data, config.facts.image_shape, 0.25, 1)
    assert sorted([*known.ids.tolist(), *asked.ids.tolist()]) == list(range(36))
    store = ImageStore(stores["train"])
    for part in (known, asked):
        assert part.labels.tolist() == store.labels[part.ids].tolist()
    assert sorted(asked.labels.tolist()) == [0] * 3 + [1] * 3 + [2] * 3


def test_all_writes_one_file_that_report_reads(command: Command, stores: dict[str, Path]) -> None:
    given = ("--train", stores["train"], "--test", stores["test"], "--minutes", 3)
    found = command("evaluate", "all", stores["run"], *given, "--json")
    assert found.code == 0, found.err
    said = " ".join(found.err.split())  # standard output is the object's
    assert "the 20 nearest by cosine similarity s vote" in said
    assert "logistic regression on standardised features" in said
    assert "Backbone features of 36 training images, without labels" in said
    assert "RankMe" in said
    assert "linear probe: Of " in said
    assert "give the class whose centre is nearest" in said
    written = json.loads((stores["run"] / "evaluation.json").read_text())
    assert {"run": str(stores["run"]), **written} == found.json
    assert [one["evaluation"] for one in written["accuracies"]] == ["kNN, k = 1", "kNN, k = 20", "linear probe"]
    assert [row["features"] for row in written["accuracies"][0]["rows"]] == ["backbone", "head-1"] * 2
    assert [row["step"] for row in written["ranks"]] == [None, 1]
    assert written["left_out"] == {}
    names = {path.name for path in (stores["run"] / "evaluation").iterdir()}
    pictures = {"confusion.png", "mistakes.png", "map.png"}
    assert names == {"classification.txt", "classification.json", "gallery.json", *pictures}
    assert min(Image.open(written["map"]).size) > 100
    assert (written["train"], written["test"]) == (str(stores["train"]), str(stores["test"]))
    _expect_gallery(stores, json.loads((stores["run"] / "evaluation" / "gallery.json").read_text()))
    shown = command("report", stores["run"])
    assert shown.code == 0, shown.err
    assert "linear probe" in shown.out
    shown_rows = dict(evaluation.rows(stores["run"]))
    assert command("report", stores["run"], "--json").json["evaluation"] == shown_rows
    assert shown_rows.keys() == {f"{name}, 36 labels" for name in ("kNN, k = 1", "kNN, k = 20", "linear probe")}
    assert all(row.endswith("; of step 1)") for row in shown_rows.values())


def _expect_gallery(stores: dict[str, Path], found: dict[str, Any]) -> None:
    """Compare the neighbours with those of features that are computed here."""
    encoder = load_encoder(stores["run"])
    train, test = (normalize(encoder.embed(stores[name]).double()) for name in ("train", "test"))
    known, asked = ({ImageStore(stores[name]).keys_at(np.array([i]))[0]: i for i in range(n)} for name, n in PARTS)
    assert len(found["neighbours"]) == 8
    assert {one["label"] for one in found["neighbours"]} == {"class0", "class1", "class2"}
    for one in found["neighbours"]:
        similarity = train @ test[asked[one["key"]]]
        shown = [near["similarity"] for near in one["nearest"]]
        # rounded to four digits, of float32 features
        assert shown == pytest.approx(similarity.sort(descending=True).values[:6].tolist(), abs=1e-4)
        assert shown == pytest.approx([float(similarity[known[near["key"]]]) for near in one["nearest"]], abs=1e-4)
        assert all(near["key"].startswith(near["label"]) for near in one["nearest"])
    assert len(found["map"]["x"]) == len(found["map"]["group"]) == 18
    page = Gallery.of(found)
    assert page.small
    assert len(page.mistakes) == min(24, len(found["mistakes"]))


@pytest.mark.parametrize("content", ["{}", "[]", "null", "no JSON", '{"step": 1, "accuracies": [{"rows": []}]}'])
def test_a_file_that_is_no_evaluation_is_passed_over(
    command: Command, stores: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    shutil.copy(stores["run"] / "metrics.jsonl", tmp_path)
    (tmp_path / "evaluation.json").write_text(content)
    shown = command("report", tmp_path)
    assert shown.code == 0, shown.err
    assert "evaluation.json: passed over" in caplog.text


@pytest.mark.parametrize("name", ["evaluation.json", "evaluation/gallery.json", "evaluation/mistakes.png"])
def test_what_stands_in_the_way_is_named_first(
    command: Command, stores: dict[str, Path], tmp_path: Path, name: str
) -> None:
    shutil.copytree(stores["run"] / "checkpoints", tmp_path / "checkpoints")
    (tmp_path / name).mkdir(parents=True)
    found = command("evaluate", "all", tmp_path, "--train", stores["train"], "--test", stores["test"])
    assert (found.code, found.out) == (2, "")
    assert f"{tmp_path / name} is a folder, where a file is to be written: rename it" in found.err


def test_what_does_not_fit_is_named(stores: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which an hour has passed leaves the least number of labels, and neither ranks nor a map."""
    ticks = iter(range(0, 10**9, 3600))
    monkeypatch.setattr(everything.time, "monotonic", lambda: float(next(ticks)))
    config = resolved_config(stores["train"])
    pair = split_in_two(stores["train"], config.data, config.facts.image_shape, 0.25, 1)
    from ssl_dist.checkpoint import locate

    found = everything.measure(locate(stores["run"]), pair, 60, Bar)
    assert (found.ranks, found.map) == (None, None)
    assert found.left_out.keys() == {"linear probe", "further training labels", "ranks", "map"}
    assert found.left_out["further training labels"] == "6 of 27 fit"
    assert [one.name for one in found.accuracies] == ["kNN, k = 1", "kNN, k = 6"]
    assert len(found.accuracies[0].train.ids) == 6
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "map.png").touch()  # of an earlier evaluation
    assert evaluation.write(tmp_path, found)["map"] is None
    assert not (tmp_path / "evaluation" / "map.png").exists()


class Bar:
    """Stands in for a bar."""

    def __init__(self, title: str) -> None: ...

    def __enter__(self) -> Any:
        return lambda done, total: None

    def __exit__(self, *_: object) -> None: ...


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, 6),  # two of each class
        (1.3 * (2 * 9 * 0.5 + 10 * 2 * (0.5 + 3 * 0.1)) + 0.01, 10),
        (1e6, 27),
    ],
)
def test_labels_are_as_many_as_can_be_paid(stores: dict[str, Path], seconds: float, expected: int) -> None:
    config = resolved_config(stores["train"])
    known, asked = split_in_two(stores["train"], config.data, config.facts.image_shape, 0.25, 1)
    assert isinstance(known, Labelled)
    assert everything._affordable(Costs(0.5, 0.1), known, asked, 3, seconds) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("transfer", "{run}", "{plain}"), "has no labels"),
        (("transfer", "{run}", "{train}", "{small}"), "(8, 8, 3) images where (16, 16, 3) is needed"),
        (("transfer", "{run}", "{train}", "--k", "28"), "k 28: the bank has 27 labelled images"),
        (("transfer", "{run}", "{train}", "--share", "1"), "--share 1: it is between 0 and 1"),
        (("all", "{run}", "--train", "{plain}", "--test", "{test}"), "has no labels"),
        (("all", "{run}", "--train", "{train}", "--test", "{small}"), "(8, 8, 3) images where (16, 16, 3) is needed"),
        (("all", "{run}", "--train", "{train}", "--test", "{test}", "--minutes", "inf"), "--minutes inf: it is 0.1 to"),
        (("all", "{train}", "--train", "{train}", "--test", "{test}"), "holds no checkpoint"),
    ],
)
def test_bad_input_is_one_line(
    command: Command, stores: dict[str, Path], arguments: tuple[str, ...], message: str
) -> None:
    found = command("evaluate", *(one.format(**stores) for one in arguments))
    assert (found.code, found.out) == (2, "")
    assert message in found.err
    assert "Traceback" not in found.err
