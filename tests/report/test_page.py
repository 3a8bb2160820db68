"""A report is one file that shows all that a run's directory holds, and says what it lacks."""

from __future__ import annotations

import base64
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from ssl_dist.config import ResolvedConfig
from ssl_dist.report.label_page import thumbnail
from ssl_dist.report.page import RunFiles, ranked, write_page
from ssl_dist.report.page.views import Views, views_of
from ssl_dist.store import ImageStore
from tests.command import Command
from tests.helpers import resolved_config
from tests.report.pages import Page, whole_run, write_evaluation, write_run

SECTIONS = ["result", "run", "curves", "views", "evaluation", "classes", "images", "neighbours", "map", "again"]
HOSTILE = "</script></style>\"'><b id=x>&amp;{{ 1 }}é"


def page_of(*runs: Path, price: float | None = None) -> Page:
    out = runs[0].parent / "page.html"
    write_page([RunFiles.read(run) for run in runs], "some runs", out, price)
    return Page(out)


@pytest.fixture(scope="module")
def complete(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a run that has everything; tests change copies of it."""
    return whole_run(tmp_path_factory.mktemp("runs") / "complete", small_store)


@pytest.fixture
def run(complete: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(complete, tmp_path / "my run"))


def test_a_whole_run_has_every_section_and_figure(run: Path) -> None:
    page = page_of(run, price=1.2)
    assert page.sections == SECTIONS
    assert "missing" not in {attributes.get("class") for _, attributes in page.elements}
    for words in (
        *("kNN, k = 20 gets 60.0 % of the test images right: 20.0 points more", "95 % interval 55.0 to 65.0 %"),
        *("random weights 40.0 %", "how linear was done", "30 of 50 fit", "the temperature is low step 8"),
        *("51 images of 16 x 16 px", "here: a CPU, 4 cores, 8 GiB", "began 2001-09-09 01:46 UTC", "workers 2"),
        *("time 60.0 minutes, of which 5 seconds in training steps", "1.20 at 1.2 an hour", "ssl_dist 0.9, python"),
        *(
            "Of 14 wrong answers, some.",
            "dog a ship 70.0 %",
            "is dog",
            "-20.0 (-25.0 .. -12.5)",
            "finished: 40 steps",
            "mine/own",
            "nan",
        ),
        "ssl-dist evaluate all '" + str(run) + "' --train stores/train --test stores/test",
    ):
        assert words in page.text, words


def test_a_page_is_one_well_formed_file_that_loads_nothing(run: Path) -> None:
    for page in (page_of(run), page_of(run, run)):
        assert page.open == []
        assert len(page.source.encode()) < 5 << 20
        loaded = [attributes[name] for _, attributes in page.elements for name in ("src", "href") if name in attributes]
        assert {str(one).partition(":")[0] for one in loaded} <= {"data"}
        assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttpRequest|import ", page.source)
        policy = [attributes["content"] for _, attributes in page.elements if "http-equiv" in attributes]
        assert str(policy[0]).startswith("default-src 'none'; img-src data:;")


def test_the_same_files_give_the_same_bytes(run: Path) -> None:
    assert page_of(run).source == page_of(run).source


def test_nothing_in_a_name_becomes_html(small_store: Path, run: Path, tmp_path: Path) -> None:
    """Class names, keys, paths, settings, findings and protocols."""
    bad = tmp_path / "bad" / HOSTILE.replace("/", "-")
    store = Path(shutil.copytree(small_store, tmp_path / HOSTILE.replace("/", "-")))
    config = resolved_config(store)
    write_run(bad, config)
    (bad / "health.jsonl").write_text(json.dumps({"step": 8, "epoch": 1.0, "rule": "r", "text": HOSTILE}) + "\n")
    write_evaluation(bad, [f"{HOSTILE} 0", f"{HOSTILE} 1", f"{HOSTILE} 2"])
    evaluation = json.loads((bad / "evaluation.json").read_text())
    evaluation["accuracies"][0] |= {"protocol": HOSTILE, "evaluation": HOSTILE}
    (bad / "evaluation.json").write_text(json.dumps({**evaluation, "left_out": {HOSTILE: HOSTILE}}))
    lines = (bad / "metrics.jsonl").read_text()
    (bad / "metrics.jsonl").write_text(lines.replace("mine/own", json.dumps(HOSTILE)[1:-1]))
    for pages in ((page_of(run), page_of(bad)), (page_of(run, run), page_of(bad, bad))):
        plain, hostile = ([tag for tag, _ in page.elements] for page in pages)
        assert hostile == plain
        assert pages[1].open == []
    assert HOSTILE in page_of(bad).text


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("evaluation.json", "This command does it: ssl-dist evaluate all"),
        ("evaluation/classification.json", "The evaluation has no file on classes. This command writes it: ssl-dist"),
        ("evaluation/gallery.json", "no images, neighbours and map"),
        ("config.json", "The settings are not here"),
        ("metrics.jsonl", "There are no metrics yet"),
    ],
)
@pytest.mark.parametrize(
    "content", [None, "{", "[]", '{"step": {}}', '{"accuracies": [{"rows": []}], "step": 1}', "\udcff"]
)
def test_what_is_missing_or_damaged_is_said(run: Path, file: str, said: str, content: str | None) -> None:
    if content is None:
        (run / file).unlink()
    else:
        (run / file).write_bytes(content.encode("utf-8", "surrogateescape"))
    page = page_of(run)
    assert said in page.text
    assert (f"{file} is damaged" in page.text) == (content is not None and file != "metrics.jsonl")
    page_of(run, run)


@pytest.mark.parametrize("file", ["starts.jsonl", "health.jsonl", "recipe.txt"])
@pytest.mark.parametrize("content", [None, "[]\n", '{"began": 1}\n{"ended": "x"}\n', "\udcff\n"])
def test_smaller_files_may_be_missing_or_damaged(run: Path, file: str, content: str | None) -> None:
    if content is None:
        (run / file).unlink()
    else:
        (run / file).write_bytes(content.encode("utf-8", "surrogateescape"))
    page = page_of(run)
    assert page.sections == SECTIONS
    if file == "starts.jsonl":
        assert "not recorded by the version that ran it" in page.text
        assert "5 seconds in training steps; pauses and starts were not recorded" in page.text
    if file == "recipe.txt":
        assert "the nearest of the package" in page.text


def test_damaged_lines_of_metrics_are_left_out(run: Path) -> None:
    whole = page_of(run).source
    more = [
        '{"step": 3}',
        "7",
        '{"step": "x", "epoch": 1, "train/loss": 9}',
        '{"step": 4, "epoch": 1, "loss": "9"}',
    ]
    with (run / "metrics.jsonl").open("a") as file:
        file.write("\n".join([*more, '{"step": 40, "epoch"']))
    assert page_of(run).source == whole


def test_a_run_in_progress_says_how_far_it_is(small_store: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", resolved_config(small_store), steps=20)
    (run / "starts.jsonl").write_text((run / "starts.jsonl").read_text().splitlines()[0] + "\n")
    page = page_of(run)
    assert "not finished: 20 of 40 steps" in page.text
    assert "During training, online kNN came to 50.0 %, from 25.0 % at step 0." in page.text
    assert page.sections == ["result", "run", "curves", "views", "evaluation", "again"]
    (run / "metrics.jsonl").unlink()
    assert "Nothing has been measured of this run yet." in page_of(run).text


def test_a_probe_that_has_not_risen_is_a_warning(small_store: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", resolved_config(small_store), probe=0.25)
    assert "online kNN is no better than at step 0" in page_of(run).text


def test_an_evaluation_of_an_earlier_step_is_named(run: Path) -> None:
    evaluation = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").write_text(json.dumps({**evaluation, "step": 16}))
    assert "The evaluation is of step 16; the run has 40 steps." in page_of(run).text


def test_the_recipe_that_is_saved_is_the_runs(run: Path, tmp_path: Path) -> None:
    page = page_of(run)
    [link] = [attributes for tag, attributes in page.elements if tag == "a"]
    saved = base64.b64decode(str(link["href"]).partition("base64,")[2]).decode()
    config = json.loads((run / "config.json").read_text())
    del config["facts"]
    assert yaml.safe_load(saved) == config
    assert link["download"] == "my run.yaml"


def test_keys_in_uris_are_nowhere(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config["data"]["store"] = "s3://user:secret@bucket/store?endpoint_override=host"
    config["checkpoint"]["mirror"] = "s3://user:secret@bucket/runs"
    (run / "config.json").write_text(json.dumps(config))
    other = shutil.copytree(run, run.parent / "other")
    config["data"]["store"] = "s3://user:secret@bucket/other"
    (other / "config.json").write_text(json.dumps(config))
    for page in (page_of(run), page_of(run, other)):
        assert "secret" not in page.source
        assert "s3://bucket/store" in page.text
    assert "the store is in a bucket, and a report fetches nothing" in page_of(run).text


def test_views_are_those_of_the_first_epoch(small_store: Path, tmp_path: Path) -> None:
    config = resolved_config(small_store)
    found = views_of(config)
    assert isinstance(found, Views)
    assert [(name, len(row)) for name, row in found.rows] == [("stored", 8), ("view 1", 8), ("view 2", 8)]
    plain = views_of(resolved_config(small_store, augment__only=()))
    assert isinstance(plain, Views)
    assert plain.rows[0][1] == plain.rows[1][1] == plain.rows[2][1], "whole images are what is stored"
    crops = views_of(resolved_config(small_store, augment__recipe="swav-small", method__name="swav"))
    assert isinstance(crops, Views)
    assert len(crops.rows) == 7
    tree = config.model_dump()
    tree["facts"]["store_digest"] = "another"
    assert "holds other images now" in str(views_of(ResolvedConfig.from_tree(tree, "")))
    tree["data"]["store"] = str(tmp_path / "gone")
    assert str(tmp_path / "gone") in str(views_of(ResolvedConfig.from_tree(tree, "")))


def test_views_are_of_images_that_the_run_has_trained_on(small_store: Path, tmp_path: Path) -> None:
    store = ImageStore(small_store)
    labels = np.full(len(store), -1, np.int32)
    labels[[3, 30]] = 0, 1
    np.save(tmp_path / "labels.npy", labels)
    few = {
        "method": {"name": "supervised"},
        "data__label_file": str(tmp_path / "labels.npy"),
        "batch": {"size": 2, "micro": 2},
    }
    found = views_of(resolved_config(small_store, probe=None, augment__recipe="weak", **few))
    assert isinstance(found, Views)
    assert set(found.rows[0][1]) == {thumbnail(image) for image in store.gather(np.array([3, 30]))}


def test_several_runs_stand_side_by_side(small_store: Path, tmp_path: Path) -> None:
    first = whole_run(tmp_path / "first", small_store, optim__lr=0.25, batch__size=16)
    second = write_run(tmp_path / "second", resolved_config(small_store, optim__lr=0.5), probe=0.75)
    page = page_of(first, second, price=2)
    assert page.sections == ["result", "settings", "curves", "each"]
    table = page.text.partition("Settings that differ")[2].partition("Training")[0].split()
    assert table == ["run", "batch.size", "optim.lr", "first", "16", "0.25", "second", "12", "0.5"]
    assert "first 60.0 % 55.0 .. 65.0 60.0 % 55.0 .. 65.0 50.0 % 25.0 % 40 100 60.0 minutes 2.00" in page.text
    assert "second — — 75.0 % 25.0 %" in page.text
    assert f"Not evaluated yet: ssl-dist evaluate all {second}" in page.text
    assert "the temperature is low first, step 8" in page.text
    lines = [attributes for tag, attributes in page.elements if tag == "path"]
    assert {str(one["class"]) for one in lines} == {"line s0", "line s1"}


def test_the_best_by_a_common_measure_is_named(small_store: Path, tmp_path: Path) -> None:
    first, second = (whole_run(tmp_path / name, small_store) for name in ("first", "second"))
    shutil.rmtree(second / "evaluation")
    write_evaluation(second, top1=0.7)
    assert "second has the best linear: 70.0 % of the test images." in page_of(first, second).text
    (second / "evaluation.json").unlink()
    assert "first has the best online kNN: 50.0 %." in page_of(first, second).text


NONE_IS_BEST = "were not measured by the same measure on the same images, so none is best"


@pytest.mark.parametrize(("key", "value"), [("test", "stores/other"), ("train", "stores/other"), ("num_test", 21)])
def test_none_is_best_of_runs_that_were_measured_on_other_images(
    small_store: Path, tmp_path: Path, key: str, value: object
) -> None:
    first, second = (whole_run(tmp_path / name, small_store) for name in ("first", "second"))
    found = json.loads((second / "evaluation.json").read_text())
    for level in (found, *found["accuracies"]):
        level.update({key: value} if key in level else {})
    (second / "evaluation.json").write_text(json.dumps(found))
    config = json.loads((second / "config.json").read_text())
    config["facts"]["store_digest"] = "another"  # so that their probes classify other images, too
    (second / "config.json").write_text(json.dumps(config))
    assert NONE_IS_BEST in page_of(first, second).text


def test_probes_of_each_kind_stand_together_and_what_is_no_number_last(small_store: Path, tmp_path: Path) -> None:
    config = resolved_config(small_store)
    values = {"rank": 40.0, "low": 0.3, "lost": math.nan, "high": 0.9, "larger": 50.0}
    runs = [write_run(tmp_path / name, config, probe=value) for name, value in values.items()]
    for run in runs:
        if run.name in ("rank", "larger"):
            lines = (run / "metrics.jsonl").read_text()
            (run / "metrics.jsonl").write_text(lines.replace("probe/knn", "probe/rankme"))
    empty = write_run(tmp_path / "empty", config)
    (empty / "metrics.jsonl").write_text("")
    found = ranked([RunFiles.read(run) for run in (empty, *runs)])
    assert [run.name for run in found] == ["high", "low", "lost", "larger", "rank", "empty"]
    page = page_of(*runs)
    assert "By online probe, the best first of each kind." in page.text
    assert NONE_IS_BEST in page.text


def test_a_setting_that_is_not_known_is_a_dash_and_null_is_null(small_store: Path, tmp_path: Path) -> None:
    first = write_run(tmp_path / "first", resolved_config(small_store, optim__clip_norm=None, seed=3))
    second = write_run(tmp_path / "second", resolved_config(small_store, optim__clip_norm=1.5, seed=4))
    broken = write_run(tmp_path / "broken", resolved_config(small_store))
    (broken / "config.json").write_text("{")
    table = page_of(first, second, broken).text.partition("Settings that differ")[2].partition("Training")[0].split()
    at = table.index("first")
    assert table[at : at + 9] == ["first", "3", "null", "second", "4", "1.5", "broken", "\N{EM DASH}", "\N{EM DASH}"]


def test_runs_of_one_name_are_told_apart(small_store: Path, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / folder / "same", resolved_config(small_store)) for folder in ("a", "b")]
    assert all(str(run) in page_of(*runs).text.partition("Settings")[0] for run in runs)


def test_more_runs_than_colours_are_in_the_table(small_store: Path, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"run-{number}", resolved_config(small_store, seed=number)) for number in range(12)]
    page = page_of(*runs)
    assert "Drawn are the first 10 of the 12 runs above." in page.text
    assert all(f"run-{number}" in page.text for number in range(12))


def test_the_command_writes_the_page_of_a_run(command: Command, run: Path) -> None:
    done = command("report", run, "--price-per-hour", 3, "--json")
    assert done.code == 0, done.err
    assert done.json["report"] == str(run / "report.html")
    assert "3.00 at 3 an hour" in Page(run / "report.html").text
    pictured = command("report", run, "--out", run / "curves.svg", "--json")
    assert pictured.json["picture"] == str(run / "curves.svg")
    assert "<svg" in (run / "curves.svg").read_text()


def test_the_command_puts_a_page_of_several_runs_where_they_lie(command: Command, run: Path) -> None:
    shutil.copytree(run, run.parent / "other")
    done = command("report", run, run.parent / "other", "--json")
    assert done.code == 0, done.err
    assert done.json["report"] == str(run.parent / "report.html")
    assert [(one["run"], one["step"], one["probe"]) for one in done.json["runs"]] == [
        (str(run), 40, 0.5),
        (str(run.parent / "other"), 40, 0.5),
    ]


def test_a_sweep_is_its_trials_the_best_first(command: Command, small_store: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    for name, probe in (("a", 0.5), ("b", 0.75)):
        write_run(sweep / "trials" / name, resolved_config(small_store), probe=probe)
    (sweep / "sweep.json").write_text("{}")
    done = command("report", sweep, "--json")
    assert done.code == 0, done.err
    assert [Path(one["run"]).name for one in done.json["runs"]] == ["b", "a"]
    assert "Sweep sweep" in Page(sweep / "report.html").text
    shutil.rmtree(sweep / "trials")
    assert "no trial has begun" in command("report", sweep).err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{run}", "--price-per-hour", "-1"), "--price-per-hour -1: it is 0 or more"),
        (("{run}", "--price-per-hour", "nan"), "--price-per-hour nan: it is 0 or more"),
        (("{run}", "--out", "page.txt"), "--out page.txt: its name must end in .html or .png or .svg or .pdf"),
        (("{run}", "--out", "{run}/no/page.html"), "there is no folder"),
        (("{run}", "{run}", "--out", "{run}/page.png"), "a picture has the curves of one run"),
        (("{run}", "{run}/.."), "is no run: it has neither config.json nor metrics.jsonl"),
    ],
)
def test_a_mistake_is_one_line(command: Command, run: Path, arguments: tuple[str, ...], message: str) -> None:
    done = command("report", *(one.format(run=run) for one in arguments))
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert "Traceback" not in done.err


def test_a_page_that_cannot_be_written_leaves_nothing(command: Command, run: Path) -> None:
    (run / "report.html").mkdir()
    done = command("report", run)
    assert (done.code, "it is a folder" in done.err) == (2, True)
