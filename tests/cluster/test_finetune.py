"""Fine-tuning: its cells, what chooses among them, what is not repeated, and what is refused before anything trains."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cluster.commands.finetune import conclude
from ssl_dist.checkpoint import Checkpoints
from ssl_dist.errors import ConfigError, Interrupted, RunError, StoreError
from ssl_dist.evaluate.pseudo_labels import predict
from ssl_dist.store import ImageStore, build
from tests.cluster.pipeline_commands import build_another, invoke, settings_of
from tests.conftest import write_images


def finetune(run: object, store: Path, out: Path, *more: object) -> Any:
    options = ["--epochs", 2, "--batch", 8, "--labels", 30, "--run-dir", out, "--json"]
    result = invoke("evaluate", "finetune", run, "--train", store, "--test", store, *options, *more)
    return json.loads(result.stdout)


def initial_weights(directory: Path) -> dict[str, Any]:
    found = Checkpoints(directory).newest()
    assert found is not None
    return found.load().model


def test_each_combination_is_a_run_of_the_settings_asked_for(
    launched: list[str], pretrained: Path, small_store: Path, tmp_path: Path
) -> None:
    axes = ["--grid", "lr=0.01,0.001", "--grid", "unfreeze=head,last:2", "--seeds", 2, "--from", "run,random"]
    more = ["--optimizer", "adamw", "--hidden", 7, "--layer-decay", 0.5, "--patience", 3, "--seed", 4]
    found = finetune(pretrained, small_store, tmp_path / "out", *axes, *more)
    assert len(launched) == 2 * 2 * 2 * 2
    assert [(row["start"], *row["settings"].values()) for row in found["rows"]] == [
        (start, lr, unfreeze)
        for start in ("run", "random")
        for lr in ("0.01", "0.001")
        for unfreeze in ("head", "last:2")
    ]
    row = found["rows"][1]
    assert [one["seed"] for one in row["runs"]] == [4, 5]
    config = settings_of(Path(row["runs"][1]["run"]))
    assert config["seed"] == 5
    wanted = {"name": "adamw", "lr": 0.01, "layer_decay": 0.5, "schedule": "plateau", "warmup_epochs": 0}
    assert config["optim"].items() >= wanted.items()
    assert config["method"].items() >= {"name": "supervised", "unfreeze": "last:2", "hidden": 7}.items()
    assert (config["batch"]["size"], config["batch"]["micro"], config["epochs"]) == (8, 4, 2)
    assert (config["probe"]["kind"], config["probe"]["patience"], config["augment"]["recipe"]) == (
        "validation",
        3,
        "weak",
    )
    assert config["backbone"].items() >= {"name": "resnet8", "stem": "half", "width": 8}.items()
    given = load_file(pretrained / "checkpoints" / "step-00000002" / "model.safetensors")
    for row in found["rows"]:
        start = initial_weights(Path(row["runs"][0]["run"]))
        same = all((start[name] == tensor).all() for name, tensor in given.items() if name.startswith("backbone."))
        assert same == (row["start"] == "run")


def test_labels_are_drawn_by_class_and_written_down(
    launched: list[str], pretrained: Path, small_store: Path, tmp_path: Path
) -> None:
    found = finetune(pretrained, small_store, tmp_path / "out", "--seeds", 2)
    store, lists = ImageStore(small_store), []
    for number, run in enumerate(found["rows"][0]["runs"]):
        config = settings_of(Path(run["run"]))
        learnt, held = (np.load(config[part]["label_file"]) for part in ("data", "probe"))
        assert [np.bincount(part[part >= 0]).tolist() for part in (learnt, held)] == [[9, 9, 9], [1, 1, 1]]
        assert not ((learnt >= 0) & (held >= 0)).any()
        with (tmp_path / "out" / f"30-labels-seed-{number}.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert {int(row["id"]) for row in rows if row["part"] == "train"} == set(np.flatnonzero(learnt >= 0))
        assert {int(row["id"]) for row in rows if row["part"] == "validation"} == set(np.flatnonzero(held >= 0))
        assert [row["key"] for row in rows] == store.keys_at(np.array([int(row["id"]) for row in rows]))
        assert all(row["key"].startswith(row["label"]) for row in rows), "an image's key begins with its class"
        lists.append(rows)
    assert lists[0] != lists[1]


def test_validation_chooses_the_best_cell_and_test_labels_choose_nothing(
    launched: list[str],
    pretrained: Path,
    small_store: Path,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A leak is planted: each cell gives all images one class, and three test stores have nearly one class alone."""

    def constant(checkpoint: Path, store: ImageStore, ids: np.ndarray, *_: object) -> torch.Tensor:
        lr = settings_of(checkpoint.parent.parent)["optim"]["lr"]
        return torch.eye(3)[[0.1, 0.001, 0.01].index(lr)].expand(len(ids), 3)

    monkeypatch.setattr("cluster.pipelines.tested.predict", constant)
    for right in range(3):
        shutil.copytree(image_folder / f"class{right}", tmp_path / f"images-{right}" / f"class{right}")
        other = tmp_path / f"images-{right}" / f"class{(right + 1) % 3}"
        other.mkdir()
        shutil.copy(image_folder / other.name / "000.png", other)
        build(tmp_path / f"images-{right}", tmp_path / f"test-{right}", workers=1)
        more = ["--grid", "lr=0.1,0.001,0.01", "--from", "run,random", "--test", tmp_path / f"test-{right}"]
        rows = finetune(pretrained, small_store, tmp_path / "out", *more)["rows"]
        wanted = [{0: 17 / 18, 1: 1 / 18, 2: 0}[(number - right) % 3] for number in range(3)]
        assert [row["top1"] for row in rows] == wanted * 2
        assert [row["best"] for row in rows] == [False, True, False] * 2
        assert [row["validation"] for row in rows] == pytest.approx([0.901, 1.0, 0.991] * 2)


def test_what_was_finished_and_tested_is_not_repeated(
    launched: list[str], pretrained: Path, small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested = []

    def counted(run: Path, *rest: Any) -> Any:
        tested.append(run)
        return predict(run, *rest)

    monkeypatch.setattr("cluster.pipelines.tested.predict", counted)
    first = finetune(pretrained, small_store, tmp_path / "out")
    assert (len(launched), len(tested)) == (1, 1)
    assert finetune(pretrained, small_store, tmp_path / "out") == first
    assert (len(launched), len(tested)) == (1, 1)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == first
    more = finetune(pretrained, small_store, tmp_path / "out", "--grid", "lr=0.0003,0.01")
    assert (len(launched), len(tested)) == (2, 2), "one of its two cells had been there"
    assert more["rows"][0]["runs"] == first["rows"][0]["runs"]
    build_another(tmp_path / "other")
    with pytest.raises(
        ConfigError, match=r"30-labels-seed-0-train\.npy has other labels than .* choose another --run-dir"
    ):
        finetune(pretrained, small_store, tmp_path / "out", "--validation", 0.2)
    with pytest.raises(ConfigError, match=r"holds a run of other settings, optim\.weight_decay"):
        finetune(pretrained, small_store, tmp_path / "out", "--set", "optim.weight_decay=0.5")


def test_a_recipe_starts_from_a_file_of_weights_or_from_random(
    launched: list[str], pretrained: Path, small_store: Path, tmp_path: Path
) -> None:
    own = ["--set", "backbone={name: resnet8, stem: half, width: 8}", "--set", "cluster.workers=1"]
    found = finetune("simclr-cifar10", small_store, tmp_path / "a", *own)
    assert [row["start"] for row in found["rows"]] == ["random"]
    with pytest.raises(ConfigError, match=r"--from run: simclr-cifar10 is a recipe without backbone\.weights"):
        finetune("simclr-cifar10", small_store, tmp_path / "b", *own, "--from", "run")
    given = load_file(pretrained / "checkpoints" / "step-00000002" / "model.safetensors")
    save_file(given, tmp_path / "weights.safetensors")
    weights = ["--set", f"backbone.weights={tmp_path / 'weights.safetensors'}"]
    found = finetune("simclr-cifar10", small_store, tmp_path / "c", *own, *weights, "--from", "run,random")
    starts = [initial_weights(Path(row["runs"][0]["run"])) for row in found["rows"]]
    name = "backbone.body.0.weight"
    assert [bool((start[name] == given[name]).all()) for start in starts] == [True, False]
    whole = f"backbone={{name: resnet8, stem: half, width: 8, weights: {tmp_path / 'weights.safetensors'}}}"
    found = finetune("simclr-cifar10", small_store, tmp_path / "d", "--set", whole, "--set", "cluster.workers=1")
    [row] = found["rows"]
    start = initial_weights(Path(row["runs"][0]["run"]))
    assert (row["start"], bool((start[name] == given[name]).all())) == ("run", True)
    with pytest.raises(ConfigError, match="--checkpoint best: simclr-cifar10 is a recipe, which has none"):
        finetune("simclr-cifar10", small_store, tmp_path / "e", *own, "--checkpoint", "best")


@pytest.mark.parametrize(
    ("grid", "said", "unsaid"),
    [
        ("lr=0.1,0.001", "with unfreeze all, batch 8, epochs 2, adam, schedule plateau, views weak, on", "lr 0"),
        ("optim.lr=0.1,0.001", "with unfreeze all, batch 8, epochs 2, adam, schedule plateau, views weak, on", "lr 0"),
        ("optim.name=sgd,adam", "lr 0.0003, batch 8, epochs 2, schedule plateau, views weak, on", "adam"),
        ("optim.schedule=cosine,plateau", "lr 0.0003, batch 8, epochs 2, adam, views weak, on", "schedule"),
        ("augment.recipe=weak,none", "epochs 2, adam, schedule plateau, on", "views"),
    ],
)
def test_the_sentence_says_what_all_cells_have_in_common(
    launched: list[str], pretrained: Path, small_store: Path, tmp_path: Path, grid: str, said: str, unsaid: str
) -> None:
    sentence = finetune(pretrained, small_store, tmp_path / "out", "--grid", grid)["protocol"]
    assert said in sentence
    assert unsaid not in sentence


@pytest.mark.parametrize(("num_classes", "there"), [(4, False), (5, False), (6, True)])
def test_the_five_best_answers_are_counted_where_there_are_more_classes(
    launched: list[str], pretrained: Path, tmp_path: Path, num_classes: int, there: bool
) -> None:
    write_images(tmp_path / "images", num_classes=num_classes, per_class=6)
    build(tmp_path / "images", tmp_path / "store", workers=1)
    [row] = finetune(pretrained, tmp_path / "store", tmp_path / "out", "--labels", "3-per-class")["rows"]
    assert ("top5" in row and row["top5"] is not None) == there


def test_without_validation_the_last_checkpoint_is_tested_and_no_cell_is_best(
    launched: list[str], pretrained: Path, small_store: Path, tmp_path: Path
) -> None:
    found = finetune(pretrained, small_store, tmp_path / "out", "--validation", 0, "--grid", "lr=0.1,0.001")
    assert [(row["best"], row["validation"]) for row in found["rows"]] == [(False, None)] * 2
    config = settings_of(Path(found["rows"][0]["runs"][0]["run"]))
    assert (config["probe"], config["optim"]["schedule"], config["facts"]["num_samples"]) == (None, "cosine", 30)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--unfreeze", "last:9"], ConfigError, r"last:9: the backbone has 4 layers, 5 with the classifier"),
        (["--unfreeze", "none"], ConfigError, r"method\.unfreeze 'none': it is head, all, or last:N"),
        (["--labels", "52"], ConfigError, "--labels 52: 52 of 51 labelled images in 3 classes"),
        (["--labels", "few"], ConfigError, "--labels few: it is a share"),
        (["--labels", "1-per-class"], ConfigError, r"--validation 0\.1: one label of each class leaves none"),
        (["--validation", 1], ConfigError, "--validation 1: it is a share"),
        (["--validation", 0, "--patience", 2], ConfigError, "--validation 0 leaves no loss for"),
        (["--validation", 0, "--schedule", "plateau"], ConfigError, "--validation 0 leaves no loss for"),
        (["--grid", "lr"], ConfigError, "--grid lr: write it as NAME=A,B"),
        (["--grid", "lr=1,1"], ConfigError, "--grid lr=1,1: write it as NAME=A,B"),
        (["--grid", "lr=1e-3,0.001"], ConfigError, "--grid lr=1e-3,0.001: write it as NAME=A,B"),
        (
            ["--grid", "lr=1,2", "--grid", "optim.lr=3,4"],
            ConfigError,
            "--grid optim.lr=3,4: .* each name and value once",
        ),
        (["--grid", "rate=1,2"], ConfigError, "--grid rate=1,2: NAME is one of lr, batch"),
        (["--grid", "optim.lrr=1,2"], ConfigError, r"unknown key optim\.lrr; did you mean optim\.lr"),
        (["--grid", "lr=0,1"], ConfigError, r"optim\.lr: .*greater than 0"),
        (["--batch", "0"], ConfigError, r"batch\.size"),
        (["--optimizer", "adan"], ConfigError, r"optim\.name"),
        (["--from", "scratch"], ConfigError, "--from scratch: it is run, random, or run,random"),
        (["--set", "data.label_file=x.npy"], ConfigError, r"--set data\.label_file: this command sets it"),
        (["--set", "data={cache: lazy}"], ConfigError, r"--set data: a section given whole would drop"),
        (["--set", "method={name: supervised}"], ConfigError, r"--set method: a section given whole would drop"),
        (["--set", "optim={name: sgd, lr: 0.1}"], ConfigError, r"give its keys one by one, as --set optim\.NAME=VALUE"),
        (["--grid", "optim=sgd,lars"], ConfigError, "--grid optim=sgd,lars: NAME is one of lr, batch"),
        (["--set", "backbone.weights=x"], ConfigError, r"--set backbone\.weights: network and weights are those of"),
        (["--set", "backbone={name: resnet8}"], ConfigError, "--set backbone: network and weights are those of"),
        (["--set", "seed=x"], ConfigError, "seed"),
        (["--checkpoint", 7], RunError, "has no checkpoint of step 7"),
        (["--checkpoint", "best"], RunError, "has the online probe's score"),
        (["--test", "unlabelled"], StoreError, "unlabelled has no labels"),
        (["--test", "large"], StoreError, r"large holds \(20, 20, 3\) images"),
    ],
)
def test_it_is_refused_before_anything_trains(
    launched: list[str],
    pretrained: Path,
    small_store: Path,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[object],
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if "large" in arguments:
        write_images(tmp_path / "images", num_classes=3, per_class=2, size_px=20)
        build(tmp_path / "images", tmp_path / "large", workers=1)
    if "unlabelled" in arguments:
        build(image_folder / "class0", tmp_path / "unlabelled", workers=1)
    with pytest.raises(error, match=message):
        finetune(pretrained, small_store, tmp_path / "out", *arguments)
    assert not launched


def test_results_of_other_settings_are_kept(
    launched: list[str], pretrained: Path, small_store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = finetune(pretrained, small_store, out, "--lr", 0.01)
    second = finetune(pretrained, small_store, out, "--lr", 0.001)
    assert finetune(pretrained, small_store, out, "--lr", 0.001) == second
    third = finetune(pretrained, small_store, out, "--grid", "lr=0.002,0.003")
    fourth = finetune(pretrained, small_store, out, "--grid", "lr=0.004,0.005")
    assert third["protocol"] == fourth["protocol"], "the values of a grid stand in the table alone"
    names = ("results-1", "results-2", "results-3", "results")
    kept = [json.loads((out / f"{name}.json").read_text()) for name in names]
    assert kept == [first, second, third, fourth]
    assert not (out / "results-4.json").exists()
    assert "3 of them to validate on (an accuracy on so few is sure to ±57 points)" in fourth["protocol"]


def test_neither_run_nor_recipe_is_refused(small_store: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nowhere is no run directory: recipe nowhere: no such file"):
        finetune("nowhere", small_store, tmp_path / "out")


PAGE = (Path(__file__).parent.parent.parent / "docs" / "evaluation.md").read_text()
DOCUMENTED = [
    line
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if re.match(r"ssl-dist evaluate (finetune|semi)", line)
]


@pytest.mark.parametrize("line", DOCUMENTED)
def test_a_documented_command_runs(
    launched: list[str],
    pretrained: Path,
    small_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
) -> None:
    """With numbers that 51 images allow."""
    monkeypatch.chdir(tmp_path)
    made = {"RUN": str(pretrained), "STORE": str(small_store), "32-per-class": "4-per-class", "10%": "20%"}
    made |= {"batch=32,64": "batch=4", "lr=1e-3,1e-4": "lr=1e-3", "1:1,1:5": "1:1,1:4", "3": "1"}
    words = [made.get(word, word) for word in shlex.split(line)]
    words += [] if "batch" in line else ["--batch", 4]
    words += ["--unlabelled-batch", 8] if "semi" in line else []
    assert invoke(*words[1:]).exit_code == 0
    assert launched


def test_the_documented_commands_are_found() -> None:
    assert [line.split()[2] for line in DOCUMENTED] == ["finetune"] * 3 + ["semi"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_workers_stopped_in_the_middle_give_the_same_model(
    local_ray: None, pretrained: Path, small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssl_dist.training.progress_bar import ProgressBar

    more = [
        "--epochs",
        12,
        "--grid",
        "lr=0.01,0.001",
        "--set",
        "cluster.workers=2",
        "--set",
        "optim.plateau_patience=0",
    ]
    whole = finetune(pretrained, small_store, tmp_path / "whole", *more)
    update, asked = ProgressBar.update, list[bool]()

    def interrupt(bar: ProgressBar) -> None:
        update(bar)
        if bar.last.get("step", 0) >= 9 and not asked:
            asked.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(ProgressBar, "update", interrupt)
    with pytest.raises(Interrupted, match="resume with: the same command again"):
        finetune(pretrained, small_store, tmp_path / "parts", *more)
    again = finetune(pretrained, small_store, tmp_path / "parts", *more)
    for ours, theirs in zip(whole["rows"], again["rows"], strict=True):
        assert (ours["validation"], ours["top1"]) == (theirs["validation"], theirs["top1"])
        one, other = (initial_weights(Path(row["runs"][0]["run"])) for row in (ours, theirs))
        assert all((one[name] == other[name]).all() for name in one)
    shutil.rmtree(tmp_path)


def test_passwords_in_the_addresses_of_stores_are_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = SimpleNamespace(directory=tmp_path, stores=("s3://key:secret@b/train", "s3://key:secret@b/test"))
    conclude("fine-tuning", "run", cast(Any, there), "A sentence.", [{"accuracy": 0.5}], as_json=True)
    printed, written = capsys.readouterr().out, (tmp_path / "results.json").read_text()
    assert json.loads(printed[printed.index("{") :]) == json.loads(written)
    assert json.loads(written)["train"].endswith("b/train")
    assert "secret" not in printed + written
