"""``ssl-dist label-request``: the commands of docs/label-request.md from request to label, and what is refused."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import pytest
import torch

from ssl_dist import store
from ssl_dist.report.label_page import write_pages
from ssl_dist.selection import recommended
from ssl_dist.selection.recommended import Measured
from ssl_dist.selection.strategies import STRATEGIES
from ssl_dist.store import ImageStore, stored_keys
from tests.command import Command
from tests.conftest import write_images
from tests.helpers import save, small_config, train

DOCS = (Path(__file__).parents[2] / "docs" / "label-request.md").read_text()
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", DOCS, re.DOTALL) for line in block.splitlines()]


@pytest.fixture(scope="module")
def run(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train two steps on the small store."""
    config, path = small_config(small_store), tmp_path_factory.mktemp("runs") / "run"
    save(train(0, 1, config, 0, 2).state, path, 2, config)
    return path


def truth_of(path: Path) -> dict[str, str]:
    opened = ImageStore(path)
    keys = stored_keys(path, opened.manifest)
    return {key: opened.class_names[label] for key, label in zip(keys, opened.labels, strict=True) if label >= 0}


def table_of(path: Path, labels: dict[str, str]) -> Path:
    with path.open("w", newline="") as content:
        csv.writer(content).writerows([("key", "label"), *labels.items()])
    return path


@pytest.fixture
def partly(small_store: Path, tmp_path: Path) -> Path:
    """Copy the small store, with labels for every third image."""
    path = tmp_path / "partly"
    shutil.copytree(small_store, path)
    third = {key: "" if place % 3 else name for place, (key, name) in enumerate(truth_of(path).items())}
    store.label(path, table_of(tmp_path / "third.csv", third))
    return path


def filled(file: Path, truth: dict[str, str]) -> list[str]:
    """Write the true classes into a request's table, as a person does; return its keys."""
    rows = list(csv.reader(file.open(newline="")))
    assert rows[0] == ["key", "label"]
    assert all(label == "" for _, label in rows[1:])
    keys = [key for key, _ in rows[1:]]
    table_of(file, {key: truth[key] for key in keys})
    return keys


# From request to label


def test_the_documented_commands_bring_the_labels_of_the_images_requested(
    command: Command, run: Path, small_store: Path, partly: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    truth, before = truth_of(small_store), truth_of(partly)
    for name, place in (("runs/photos", run), ("stores/photos", partly), ("stores/photos-held-out", small_store)):
        shutil.copytree(place, tmp_path / name)
    keys: list[str] = []
    for line in COMMANDS:
        words = shlex.split(line.replace("1000", "12"))
        if words[:3] == ["ssl-dist", "store", "label"]:
            keys = filled(Path(words[-1]), truth)
        done = command(*words[1:])
        assert done.code == 0, f"{line}\n{done.err}"
    assert len(keys) == len(set(keys) - before.keys()) == 12
    assert truth_of(tmp_path / "stores" / "photos") == {**before, **{key: truth[key] for key in keys}}


@pytest.mark.parametrize("name", STRATEGIES)
def test_each_strategy_requests_unlabelled_images(
    command: Command, run: Path, partly: Path, tmp_path: Path, name: str
) -> None:
    asked = ("label-request", run, partly, "--count", 7, "--strategy", name, "--json")
    done = command(*asked, "--out", tmp_path / "a")
    assert done.code == 0, done.err
    keys = (tmp_path / "a" / "keys.txt").read_text().splitlines()
    assert len(set(keys) - truth_of(partly).keys()) == len(keys) == 7
    assert done.json["strategy"] == name
    assert done.json["labelled"] == 17
    command(*asked, "--out", tmp_path / "b")
    assert (tmp_path / "b" / "keys.txt").read_text().splitlines() == keys, "the same for a seed"


def test_a_store_without_classes_is_requested_labelled_and_requested_again(
    command: Command, run: Path, tmp_path: Path
) -> None:
    write_images(tmp_path / "images", num_classes=1, per_class=20)
    store.build(tmp_path / "images" / "class0", tmp_path / "s", workers=1)
    asked = ("label-request", run, tmp_path / "s", "--count", 4, "--json")
    first = command(*asked, "--strategy", "typical", "--out", tmp_path / "first").json
    keys = (tmp_path / "first" / "keys.txt").read_text().splitlines()
    table_of(tmp_path / "first" / "labels.csv", dict(zip(keys, ["cat", "dog", "", "cat"], strict=True)))
    assert command("store", "label", tmp_path / "s", tmp_path / "first" / "labels.csv").code == 0
    assert truth_of(tmp_path / "s") == {keys[0]: "cat", keys[1]: "dog", keys[3]: "cat"}, "an empty row is no label"
    second = command(*asked, "--strategy", "margin", "--out", tmp_path / "second").json
    assert (first["labelled"], second["labelled"]) == (0, 3)


def test_a_request_lies_beside_the_run_and_prints_what_comes_next(command: Command, run: Path, partly: Path) -> None:
    done = command("label-request", run, partly, "--count", 3, "--strategy", "random")
    out = run / "label-request-random-3"
    assert sorted(path.name for path in out.iterdir()) == ["index.html", "keys.txt", "labels.csv"]
    assert f"ssl-dist store label {partly} {out / 'labels.csv'}\n" in done.out
    assert f"ssl-dist evaluate knn {run} --train {partly} --test TEST_STORE\n" in done.out
    again = command("label-request", run / "checkpoints", partly, "--count", 3, "--strategy", "random")
    assert again.code == 2
    assert f"the default folder {out}: it is there already, and not empty: choose another with --out" in again.err
    again = command("label-request", run, partly, "--count", 3, "--strategy", "random", "--out", out)
    assert (again.code, f"--out {out}: it is there already, and not empty" in again.err) == (2, True)
    shutil.rmtree(out)


def test_the_recommended_strategy_is_taken_and_named(
    command: Command, run: Path, partly: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("label-request", run, partly, "--count", 3, "--out")
    table = [
        Measured("made", 8, 20, name, seed, 0.5 + seed / 10 + gain, 0.5)
        for seed in range(3)
        for name, gain in (("random", 0), ("coreset", 0.03 + seed / 1000), ("typical", 0.02))
    ]
    monkeypatch.setattr(recommended, "shipped", lambda: table)
    done = command(*asked, tmp_path / "a", "--json")
    assert done.json["strategy"] == "coreset"
    assert done.json["recommended"]["mean"] == pytest.approx(0.031)
    said = " ".join(command(*asked, tmp_path / "b").out.replace("│", " ").split())
    reason = "of the numbers measured, 20 labels are nearest to your {}; there +3.1 points over random on made (+2.7 to"
    total = 3 + int((ImageStore(partly).labels >= 0).sum())
    assert done.json["recommended"]["reason"].startswith(reason.format(total))
    assert f"coreset: {reason.format(total)}" in said
    monkeypatch.setattr(recommended, "shipped", lambda: table[:0])
    done = command(*asked, tmp_path / "c", "--json")
    nothing = {"strategy": "random", "reason": "nothing was measured"}
    assert (done.json["strategy"], done.json["recommended"]) == ("random", nothing)
    monkeypatch.setattr(recommended, "shipped", lambda: [one for one in table if one.strategy == "random"])
    done = command(*asked, tmp_path / "d", "--json")
    assert done.json["recommended"]["reason"].endswith("nothing beats random beyond the 95 % interval")


def test_the_current_folder_by_another_name_is_not_replaced(
    command: Command, run: Path, partly: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    for out in ("new/..", "."):
        done = command("label-request", run, partly, "--count", 3, "--strategy", "random", "--out", out)
        assert (done.code, f"--out {tmp_path}: it is there already" in done.err) == (2, True)
    assert sorted(tmp_path.iterdir()) == before


def test_features_that_are_not_finite_are_refused(
    command: Command, run: Path, partly: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssl_dist.evaluate import features

    monkeypatch.setattr(features, "extract", lambda *_: torch.full((51, 4), torch.nan))
    done = command("label-request", run, partly, "--count", 3, "--strategy", "coreset", "--out", tmp_path / "out")
    assert done.code == 2
    assert "its features are not finite numbers" in done.err
    assert not (tmp_path / "out").exists()


def test_random_requests_need_no_features(command: Command, run: Path, partly: Path, tmp_path: Path) -> None:
    words = ["label-request", run, partly, "--count", 3, "--strategy", "random", "--out", tmp_path / "out"]
    code = f"import sys; from ssl_dist.commands.main import main; sys.argv = {['', *map(str, words)]}; main()"
    check = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); {code}"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_images_that_a_file_could_not_name_are_not_requested(
    command: Command, run: Path, partly: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.merge([partly, partly], tmp_path / "twice", workers=1)
    asked = ("label-request", run, tmp_path / "twice", "--strategy", "random", "--out", tmp_path / "out")
    done = command(*asked, "--count", 1)
    assert done.code == 2
    assert "has 68 images without a label whose keys others have too" in caplog.text
    assert "has 0 images without a label to request" in done.err


# What is refused


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}", "{store}", "--count", "1"], "--count 1: .* has 0 images without a label to request"),
        (["{run}", "{partly}", "--count", "35"], "--count 35: .* has 34 images without a label"),
        (["{run}", "{partly}", "--count", "5", "--strategy", "best"], "--strategy best: it is one of random, repr"),
        (["{run}", "{none}", "--count", "5", "--strategy", "badge"], "has no labels: take one of random, repr"),
        (["{run}", "{large}", "--count", "5"], r"holds \(24, 24, 3\) images where \(16, 16, 3\) is needed"),
        (
            ["{run}", "s3://key:secret@bucket/s", "--count", "5"],
            "s3://bucket/s: only a store in a folder can be labelled",
        ),
        (["{run}", "{run}", "--count", "5"], "is not a store|manifest"),
        (["{store}", "{partly}", "--count", "5"], "no checkpoint"),
        (["{run}", "{partly}", "--count", "5", "--out", "{store}"], "--out .*: it is there already, and not empty"),
        (["{run}", "{partly}", "--count", "5", "--out", "/proc/a/b"], "--out /proc/a/b cannot be written"),
        (["{run}", "{partly}", "--count", "0"], "is not in the range|greater than or equal to 1"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], message: str, command: Command, run: Path, partly: Path, small_store: Path, tmp_path: Path
) -> None:
    write_images(tmp_path / "images", num_classes=1, per_class=6, size_px=24 if "{large}" in words else 16)
    store.build(tmp_path / "images" / "class0", tmp_path / "other", workers=1)
    places = {"run": run, "store": small_store, "partly": partly, "none": tmp_path / "other"}
    done = command("label-request", *(word.format(**places, large=tmp_path / "other") for word in words))
    assert done.code == 2
    assert re.search(message, done.err)
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            "{first},class9\n",
            "has classes that .* does not have .class9.: correct them, or add them with --new-classes",
        ),
        ("nothing.png,class1\n", r"has keys that .* does not have \(nothing\.png\)"),
        ("{first},class1\n{first},class2\n", "two labels of"),
        ("{first}\n", "it has no key, or not 2 fields"),
    ],
)
def test_wrong_answers_are_refused_and_change_nothing(
    labels: str, message: str, command: Command, run: Path, partly: Path, tmp_path: Path
) -> None:
    command("label-request", run, partly, "--count", 2, "--strategy", "random", "--out", tmp_path / "out")
    before, file = truth_of(partly), tmp_path / "out" / "labels.csv"
    first = (tmp_path / "out" / "keys.txt").read_text().splitlines()[0]
    file.write_text("key,label\n" + labels.format(first=first))
    done = command("store", "label", partly, file)
    assert done.code == 2
    assert re.search(message, done.err)
    assert truth_of(partly) == before


# The page

HOSTILE = ["a/ü.png", 'b"c,d.png', "<script>alert(1)</script>.png", "</script><!--TITLE-->.png", "e\nf.png"]


class Page(HTMLParser):
    """What a page names and holds."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.keys, self.links, self.text = list[str](), list[str](), dict[str, str]()
        self._in = ""
        self.feed(file.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._in = given.get("id") or tag
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "action") and value]
        if tag == "figure":
            self.keys.append(str(given["data-key"]))

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        self.text[self._in] = self.text.get(self._in, "") + data


class Images(NamedTuple):
    """Stands for a store of random images."""

    class_names: Sequence[str] = ("cat", "</script>")

    def gather(self, ids: np.ndarray) -> np.ndarray:
        return np.random.default_rng(0).integers(0, 256, (len(ids), 8, 12, 3), dtype=np.uint8)


def pages_of(folder: Path, keys: list[str]) -> list[Page]:
    images = cast("ImageStore", Images())
    names = write_pages(folder, "2 <images>", keys, images, np.arange(len(keys)), "ssl-dist store label s l.csv")
    return [Page(folder / name) for name in names]


def test_a_page_holds_every_image_once_and_needs_no_network(tmp_path: Path) -> None:
    [page] = pages_of(tmp_path, HOSTILE)
    assert page.keys == HOSTILE
    assert page.links
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    assert page.text["title"] == "2 <images>"
    assert json.loads(page.text["data"])["classes"] == ["cat", "</script>"]
    assert not re.findall(r"https?:|@import|url\(", (tmp_path / "index.html").read_text())


def test_many_images_are_spread_over_pages_that_link_to_each_other(tmp_path: Path) -> None:
    keys = [f"{number}.png" for number in range(401)]
    pages = pages_of(tmp_path, keys)
    assert [len(page.keys) for page in pages] == [200, 200, 1]
    assert [key for page in pages for key in page.keys] == keys
    names = ["index.html", "page-2.html", "page-3.html"]
    assert all([link for link in page.links if not link.startswith("data:")] == names for page in pages)
    requests = {json.loads(page.text["data"])["request"] for page in pages}
    assert len(requests) == 1, "the pages of a request share their labels"
