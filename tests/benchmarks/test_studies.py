"""The studies' cells are commands that exist, run once, and go on where they were killed; the word follows its rule."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from typer.testing import CliRunner

from benchmarks.studies.__main__ import STUDIES, all_cells, wanted
from benchmarks.studies.annotator import app as annotator
from benchmarks.studies.cells import Cell, CellFailed, Results, cell, run_all, run_command, with_needs
from benchmarks.studies.claims import (
    Claim,
    Figure,
    Row,
    Value,
    difference,
    features,
    figure,
    interval,
    semi,
    transferred,
    tuned,
    verdict,
)
from benchmarks.studies.report import report
from benchmarks.studies.tables import Study
from ssl_dist.commands.options import overrides_of
from ssl_dist.commands.table import COMMANDS, load
from ssl_dist.config import RunConfig
from ssl_dist.store import ImageStore

CELLS = [one for some in all_cells(1, Path("train.tar"), Path("test.tar")).values() for one in some]
BY_NAME = {one.name: one for one in CELLS}


def as_click(words: Sequence[str]) -> tuple[Any, Sequence[str]]:
    """Return the command that the words call, and the words that are its arguments."""
    if words[0] == "python":
        assert words[1:3] == ["-m", "benchmarks.studies.annotator"]
        return find(annotator, words[3]), words[4:]
    entry = COMMANDS[words[1]]
    if words[2] in entry.more:
        return find(load(entry.more[words[2]]), None), words[3:]
    target = load(entry.target)
    is_group = isinstance(target, typer.Typer)
    return find(target, words[2] if is_group else None), words[3 if is_group else 2 :]


def find(target: Any, name: str | None) -> Any:
    if not isinstance(target, typer.Typer):
        alone = typer.Typer(add_completion=False)
        alone.command()(target)
        return typer.main.get_command(alone)
    group: Any = typer.main.get_command(target)
    return group.commands[name]


def parsed(command: str) -> tuple[list[str], dict[str, Any]]:
    words = shlex.split(command)
    found, arguments = as_click(words)
    context = found.make_context(found.name or "", list(arguments), resilient_parsing=True)
    found.parse_args(context, [*arguments, "--json"])
    return words, context.params


def checked(command: str) -> dict[str, Any]:
    """Parse a command, check the settings that it gives a recipe, and return them."""
    words, params = parsed(command)
    assert params["as_json"], command
    if words[1] not in ("pretrain", "g-simclr", "self-train"):
        return {}
    settings = overrides_of(params["settings"])
    RunConfig.load(params["recipe"], settings)
    return settings


def test_each_command_of_each_cell_parses_with_options_that_exist() -> None:
    for one in CELLS:
        for command in one.commands:
            settings = checked(command)
            assert settings.get("cluster.workers", "1") == "1", command


def test_the_commands_of_the_page_parse_with_options_that_exist() -> None:
    page = (Path(__file__).parents[2] / "docs" / "studies.md").read_text(encoding="utf-8")
    commands = re.findall(r"^    (ssl-dist .*)$", page, re.MULTILINE)
    assert len(commands) >= 9
    for command in commands:
        checked(command)


def test_names_are_unique_and_each_run_or_store_that_a_cell_needs_is_made_by_a_cell_before_it() -> None:
    assert len(BY_NAME) == len(CELLS)
    ordered = with_needs(list(BY_NAME), BY_NAME)
    done = set[str]()
    for one in ordered:
        assert set(one.needs) <= done, one.name
        done.add(one.name)
        made = re.findall(r"--(?:run-dir|out) runs/([\w.-]+)", " ".join(one.commands))
        assert all(name == one.name for name in made), one.name
    assert len(ordered) == len(CELLS)


def test_each_figure_is_of_a_cell_that_there_is() -> None:
    for study in STUDIES.values():
        figures = [row.ours for row in study.rows] + [one for claim in study.claims for one in claim.pair or ()]
        named = {name for one in figures for name in one.cells}
        assert named <= BY_NAME.keys(), named - BY_NAME.keys()
        assert all(claim.pair or claim.why for claim in study.claims)


def test_names_choose_studies_and_cells_in_the_order_given() -> None:
    cells = {"1": [cell("a", "x"), cell("b", "x")], "2": [cell("c", "x")]}
    assert wanted(["c", "1"], cells) == ["c", "a", "b"]
    with pytest.raises(typer.BadParameter, match="'d' is neither"):
        wanted(["d"], cells)


FIRST = cell("first", "ssl-dist pretrain simclr-cifar10 --run-dir runs/first")
SECOND = cell("second", "ssl-dist evaluate knn runs/first --k 1", "ssl-dist store label stores/x y.csv")
OTHER = cell("other", "ssl-dist status")


class Fake:
    """A runner that notes what it is asked to do, and fails or is killed at the words named."""

    def __init__(self, folder: Path, fails: str = "", killed: str = "") -> None:
        self.folder, self.fails, self.killed = folder, fails, killed
        self.asked: list[str] = []

    def __call__(self, words: Sequence[str], folder: Path, log: Path) -> dict[str, Any]:
        text = " ".join(words)
        self.asked.append(text)
        if "--run-dir" in words:
            run = folder / words[words.index("--run-dir") + 1]
            run.mkdir(parents=True)
            (run / "config.json").write_text("{}")
        if self.killed and self.killed in text:
            raise KeyboardInterrupt
        if self.fails and self.fails in text:
            raise CellFailed("exit code 1")
        return {"said": text}

    def all(self, *cells: Cell) -> list[str]:
        return run_all(cells, Results(self.folder), self, lambda text: None, wait_s=0.01)


def test_a_finished_cell_is_not_run_again(tmp_path: Path) -> None:
    fake = Fake(tmp_path)
    assert fake.all(FIRST, SECOND) == []
    before = list(fake.asked)
    assert fake.all(FIRST, SECOND) == []
    assert fake.asked == before
    found = json.loads((tmp_path / "second.json").read_text())
    assert [result["said"] for result in found["results"]] == [
        "ssl-dist evaluate knn runs/first --k 1 --json",
        "ssl-dist store label stores/x y.csv --json",
    ]


def test_a_killed_cell_leaves_no_figures_and_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Fake(tmp_path, killed="pretrain").all(FIRST, SECOND)
    assert not list(tmp_path.glob("*.json"))
    again = Fake(tmp_path)
    assert again.all(FIRST, SECOND) == []
    assert again.asked[0] == "ssl-dist pretrain --resume runs/first --json"


def test_a_request_for_labels_that_was_killed_begins_anew(tmp_path: Path) -> None:
    request = cell("asked", "ssl-dist label-request runs/first stores/few --out runs/asked")
    (tmp_path / "runs" / "asked").mkdir(parents=True)
    fake = Fake(tmp_path)
    assert fake.all(request) == []
    assert not (tmp_path / "runs" / "asked").exists()


def test_what_needs_a_failed_cell_is_left_and_others_run(tmp_path: Path) -> None:
    fake = Fake(tmp_path, fails="pretrain")
    assert fake.all(FIRST, SECOND, OTHER) == ["first", "second"]
    assert (tmp_path / "other.json").exists()
    assert not (tmp_path / "second.json").exists()


def test_figures_of_other_settings_are_refused(tmp_path: Path) -> None:
    assert Fake(tmp_path).all(OTHER) == []
    with pytest.raises(CellFailed, match="other commands, perhaps of other --epochs"):
        Fake(tmp_path).all(cell("other", "ssl-dist status --more"))


def test_a_cell_that_another_process_runs_is_waited_for(tmp_path: Path) -> None:
    outer = Fake(tmp_path)

    class Twice(Fake):
        def __call__(self, words: Sequence[str], folder: Path, log: Path) -> dict[str, Any]:
            if not outer.asked:  # while this process runs the cell, another one begins with the same list
                outer.asked.append("began")
                other = Results(tmp_path)
                (tmp_path / "second.json").write_text(json.dumps({"commands": SECOND.commands, "results": [{}]}))
                assert other.of(SECOND) is not None
            return super().__call__(words, folder, log)

    inner = Twice(tmp_path)
    assert inner.all(FIRST, SECOND) == []
    assert len(inner.asked) == 1, "the second cell was finished by the other"


def test_a_failed_command_says_where_its_output_is(tmp_path: Path) -> None:
    with pytest.raises(CellFailed, match=r"exit code 3 of python -c .*see .*one\.log"):
        run_command(
            ["python", "-c", "import sys; sys.exit('no') if 0 else sys.exit(3)"], tmp_path, tmp_path / "one.log"
        )
    assert run_command(["python", "-c", "print('{\"a\": 1}')"], tmp_path, tmp_path / "one.log") == {"a": 1}


@pytest.mark.parametrize(
    ("kind", "low", "high", "word"),
    [
        ("above", 0.001, 0.2, "confirmed"),
        ("above", 0.0, 0.2, "not confirmed"),
        ("above", -0.1, 0.2, "not confirmed"),
        ("above", -0.2, -0.1, "not confirmed"),
        ("level", -0.009, 0.009, "confirmed"),
        ("level", -0.009, 0.011, "not confirmed"),
        ("level", 0.02, 0.03, "not confirmed"),
    ],
)
def test_the_word_follows_from_the_interval(kind: Any, low: float, high: float, word: str) -> None:
    assert verdict(kind, Value((low + high) / 2, low, high, "3")) == word
    assert verdict(kind, Value((low + high) / 2, low, high, "2 of 3")) == "not confirmed"


def test_intervals_are_students_over_seeds_and_normal_over_images() -> None:
    # mean 0.42, standard deviation 0.02, t of 2 degrees of freedom 4.30265: half of it 0.0496827
    found = interval([0.40, 0.42, 0.44], of_one=9, planned=3)
    assert found[:3] == pytest.approx((0.42, 0.42 - 0.0496827, 0.42 + 0.0496827), abs=1e-6)
    paired = difference([0.50, 0.61, 0.72], [0.40, 0.50, 0.60])  # 0.10, 0.11, 0.12
    assert paired is not None
    assert paired[:3] == pytest.approx((0.11, 0.11 - 0.0248413, 0.11 + 0.0248413), abs=1e-6)
    # sqrt(0.5 * 0.5 / 1e4 + 0.2 * 0.8 / 1e4) * 1.959964 = 0.0125499
    alone = difference([0.5], [0.2])
    assert alone is not None
    assert alone[:3] == pytest.approx((0.3, 0.3 - 0.0125499, 0.3 + 0.0125499), abs=1e-6)


KNN = {
    "rows": [
        {"encoder": "trained, 9 steps", "features": level, "top1": 0.4 + 0.1 * (level == "head-1")}
        for level in ("backbone", "head-1")
    ]
}
TUNED = {
    "rows": [
        {"start": start, "settings": {"lr": lr}, "top1": value}
        for start, lr, value in [("run", "1e-3", 0.6), ("run", "1e-4", 0.7), ("random", "1e-3", 0.5)]
    ]
}


def test_figures_are_picked_out_of_the_commands_json() -> None:
    assert features("head-1")(KNN) == 0.5
    assert tuned(lr="1e-4")(TUNED) == 0.7
    assert tuned("random", lr="1e-3")(TUNED) == 0.5
    of_semi = {
        "rows": [{"method": "fixmatch", "start": "random", "ratio": ratio, "top1": ratio / 100} for ratio in (1, 5)]
    }
    assert semi("fixmatch", 5)(of_semi) == 0.05
    other = {"rows": [{**KNN["rows"][0], "top1": 0.9}]}
    assert transferred(1)({"stores": [{"results": [KNN, other]}]}) == 0.9
    with pytest.raises(ValueError, match="not enough"):
        features("head-2")(KNN)


def test_the_report_has_a_word_for_each_claim_and_none_without_figures() -> None:
    there = {"good": {"rows": [{"encoder": "trained", "features": "backbone", "top1": 0.6}]}}
    there["bad"] = {"rows": [{"encoder": "trained", "features": "backbone", "top1": 0.4}]}
    good, bad, missing = (figure(features(), name) for name in ("good", "bad", "missing"))
    claims = [
        Claim("right", "2 and 1", pair=(good, bad)),
        Claim("wrong", "2 and 1", pair=(bad, good)),
        Claim("same", "1 and 1", pair=(good, good)),
        Claim("later", "1 and 1", pair=(missing, bad)),
        Claim("never", "1 and 1", why="no images"),
        Claim("partly", "2 and 1", pair=(Figure(["good", "missing"], features()), Figure(["bad"] * 2, features()))),
    ]
    text = report(Study("S", "set", lambda epochs: [], [Row("alone", missing), Row("here", good)], claims), there.get)
    words = re.findall(r"\| (\w+) \|.*\*\*(.+?)\*\*(.*) \|", text)
    assert re.findall(r"^Not run: .*$", text, re.MULTILINE) == ["Not run: alone.", "Not run: later."]
    assert "| here | 60.0 (59.0 to 61.0) |  | 1 |" in text
    assert words == [
        ("right", "confirmed", ""),
        ("wrong", "not confirmed", ": the other way round"),
        ("same", "not confirmed", ": 0 lies in the interval"),
        ("never", "not testable here", ": no images"),
        ("partly", "not confirmed", ": seeds are missing"),
    ]


def test_a_difference_is_of_the_seeds_that_both_figures_have() -> None:
    found = difference([0.5, None, 0.9], [0.4, 0.5, None])
    assert found is not None
    assert (found.mean, found.seeds) == (pytest.approx(0.1), "1 of 3")
    assert difference([0.5, None], [None, 0.5]) is None
    value = Figure(["a", "b"], features()).value({"a": KNN}.get)
    assert value is not None
    assert (value.mean, value.seeds) == (0.4, "1 of 2")


def annotate(*words: object) -> dict[str, Any]:
    found = CliRunner().invoke(annotator, [*map(str, words), "--json"], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return dict(json.loads(found.stdout))


def test_the_annotator_draws_equally_many_of_each_class_with_their_true_names(
    small_store: Path, tmp_path: Path
) -> None:
    store, file = ImageStore(small_store), tmp_path / "few" / "labels.csv"
    annotate("draw", small_store, file, "--per-class", 2, "--seed", 3)
    found = list(csv.DictReader(file.open()))
    names = [store.class_names[label] for label in store.labels]
    truth = dict(zip(store.keys_at(np.arange(len(store))), names, strict=True))
    assert Counter(row["label"] for row in found) == dict.fromkeys(store.class_names, 2)
    assert all(truth[row["key"]] == row["label"] for row in found)
    again = tmp_path / "again.csv"
    annotate("draw", small_store, again, "--per-class", 2, "--seed", 3)
    assert again.read_text() == file.read_text()


def test_the_annotator_answers_the_keys_that_were_asked_for(small_store: Path, tmp_path: Path) -> None:
    store = ImageStore(small_store)
    ids = np.array([1, len(store) - 1])
    (tmp_path / "asked.csv").write_text("key,label\n" + "".join(f"{key},\n" for key in store.keys_at(ids)))
    annotate("answer", small_store, tmp_path / "asked.csv", tmp_path / "labels.csv")
    found = {row["key"]: row["label"] for row in csv.DictReader((tmp_path / "labels.csv").open())}
    names = [store.class_names[label] for label in store.labels[ids]]
    assert found == dict(zip(store.keys_at(ids), names, strict=True))


@pytest.mark.slow
def test_a_tiny_cell_runs_for_real_and_is_reported(small_store: Path, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    tiny = cell(
        "tiny",
        f"""ssl-dist pretrain simclr-cifar10 --set data.store={small_store} --set epochs=1 --set optim.warmup_epochs=0.2
        --set backbone.width=8 --set batch.size=8 --set batch.micro=8 --set cluster.workers=1 --set probe=null --run-dir
        runs/tiny""",
        f"ssl-dist evaluate knn runs/tiny --train {small_store} --test {small_store} --k 1 --baselines none",
    )
    assert run_all([tiny], Results(tmp_path), run_command, print) == []
    value = figure(features(), "tiny").value(Results(tmp_path).last)
    assert value is not None
    assert value.mean == 1.0, "the nearest image of each is itself"
