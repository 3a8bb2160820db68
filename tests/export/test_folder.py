"""The folder of an exported encoder: what it says of its run, and how damage in it is noticed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

import ssl_dist
from ssl_dist.checkpoint import State
from ssl_dist.checkpoint.exported import FACTS, WEIGHTS, sha256, write_facts
from ssl_dist.checkpoint.mirror import Mirror
from ssl_dist.errors import CheckpointError, ConfigError, RunError
from ssl_dist.export import export
from ssl_dist.files import write_text
from ssl_dist.uris import join_uri
from tests.command import Command
from tests.helpers import resolved_config, save


def test_the_command_writes_a_card_with_the_figures_of_this_step(
    command: Command, runs: dict[str, Path], tmp_path: Path
) -> None:
    run, out = runs["resnet8"], tmp_path / "out"
    row = {"encoder": "trained, 3 steps", "features": "backbone", "top1": 0.5, "top1_interval": [0.4, 0.6]}
    stores = {"train": "/home/alice/stores/cats", "test": "/home/alice/stores/cats-test"}  # one begins the other
    protocol = f"Accuracy on {stores['test']}, learned from {stores['train']}."
    accuracies = [{"evaluation": "kNN, k = 1", "protocol": protocol, "rows": [row]}]
    write_text(run / "evaluation.json", json.dumps({"step": 3, **stores, "accuracies": accuracies}))
    done = command("export", run, out, "--licence", "CC-BY-4.0", "--json")
    assert done.code == 0, done.err
    assert done.json["difference"] <= 1e-5
    assert done.json["licence"] == "CC-BY-4.0"
    card = (out / "README.md").read_text()
    assert "| kNN, k = 1 | trained, 3 steps | backbone | 50.00 | 40.0 .. 60.0 |" in card
    assert "kNN, k = 1: Accuracy on cats-test, learned from cats." in card
    assert "Licence of the weights: CC-BY-4.0." in card
    for name, digest in done.json["sha256"].items():
        assert digest == sha256(out / name)
        assert f"| {name} | `{digest}` |" in card
    assert "license: cc-by-4.0" in card
    wrong = ["[]", '{"step": 3}', '{"step": 3, "accuracies": [{"rows": [{"top1": null}]}]}', "no JSON"]
    for number, content in enumerate([json.dumps({"step": 2, "accuracies": accuracies}), *wrong]):
        write_text(run / "evaluation.json", content)
        assert command("export", run, tmp_path / str(number)).code == 0
        assert "Not measured" in (tmp_path / str(number) / "README.md").read_text()
    (run / "evaluation.json").unlink()


def test_a_classifiers_card_has_its_classes_and_the_accuracy_that_was_tested(
    command: Command, runs: dict[str, Path], tmp_path: Path
) -> None:
    run = shutil.copytree(runs["resnet8 classifies"], tmp_path / "finetune" / "all-labels-seed-0")
    seeds = [{"run": f"/elsewhere/all-labels-seed-{seed}", "step": 3, "top1": 0.5 + seed} for seed in (0, 1)]
    stores = {"train": "/private/train", "test": "/private/test"}
    protocol = "Fine-tuned on labels of /private/train, tested on /private/test."
    result = {"evaluation": "fine-tuning", **stores, "protocol": protocol}
    row = "| fine-tuning | trained, 3 steps | classifier | 50.00 |"
    for number, interval in ((1, " 40.0 .. 60.0 |"), (2, "  |")):
        rows = [{"top1_interval": [0.4, 0.6], "runs": seeds[:number]}]
        write_text(run.parent / "results.json", json.dumps({**result, "rows": rows}))
        done = command("export", run, tmp_path / str(number), "--part", "classifier", "--json")
        assert done.code == 0, done.err
        assert (done.json["outputs"], done.json["classes"]) == (3, ["class0", "class1", "class2"])
        card = (tmp_path / str(number) / "README.md").read_text()
        assert "pipeline_tag: image-classification" in card
        assert "Behind it stands a classifier of 3 classes: 0 class0, 1 class1, 2 class2." in card
        assert f"{row}{interval}" in card
        assert card.count("fine-tuning: Fine-tuned on labels of train, tested on test.") == 1
    write_text(run.parent / "results.json", json.dumps({**result, "rows": [{"runs": [{}]}]}))
    assert command("export", run, tmp_path / "other").code == 0
    assert "Not measured" in (tmp_path / "other" / "README.md").read_text()


def test_a_mirrors_key_and_a_machines_paths_stay_here(
    small_store: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card goes to strangers: it has the names of the run, the store and the weights, and nothing before them."""
    run = tmp_path / "private" / "run-1"
    network = {"name": "resnet8", "stem": "half", "width": 8, "normalisation": "none"}
    weights = resolved_config(small_store, backbone=network).initial_backbone().state_dict()
    save_file(dict(weights), tmp_path / "first.safetensors")
    network["weights"] = str(tmp_path / "first.safetensors")
    config = resolved_config(small_store, probe=None, backbone=network)
    save(State(config.initial_method().state_dict(), {}), run, 3, config)
    Mirror(join_uri(bucket, "run-1")).put(run / "checkpoints" / "step-00000003", "checkpoint.json")
    places = [str(run), str(run / "checkpoints" / "step-00000003"), join_uri(bucket, "run-1")]
    places.append(join_uri(places[-1], "step-00000003"))
    monkeypatch.chdir(run)
    for number, place in enumerate([*places, "."]):
        facts = export(place, tmp_path / str(number), "safetensors").facts
        assert (facts["run"], facts["store"]) == ("run-1", small_store.name)
        assert facts["config"]["backbone"]["weights"] == "first.safetensors"
        for file in (FACTS, "README.md"):
            text = (tmp_path / str(number) / file).read_text()
            assert not re.search(rf"secret|endpoint|{re.escape(str(tmp_path))}|{re.escape(str(small_store))}", text)


def renamed(tensors: dict[str, Tensor], name: str) -> None:
    tensors["other"] = tensors.pop(name)


def reshaped(tensors: dict[str, Tensor], name: str) -> None:
    tensors[name] = tensors[name][None].clone()


def missing(tensors: dict[str, Tensor], name: str) -> None:
    del tensors[name]


@pytest.mark.parametrize("change", [renamed, reshaped, missing])
def test_other_tensors_are_refused_by_name(runs: dict[str, Path], tmp_path: Path, change: Any) -> None:
    out = tmp_path / "out"
    export(runs["resnet8"], out, "safetensors")
    tensors = load_file(out / WEIGHTS)
    change(tensors, "0.weight")
    save_file(tensors, out / WEIGHTS)
    with pytest.raises(CheckpointError, match="differs from its checksum"):
        ssl_dist.load_encoder(out)
    rewrite(out, sha256={WEIGHTS: sha256(out / WEIGHTS)})
    with pytest.raises(CheckpointError, match=r"other tensors than its network.*body\.0\.weight"):
        ssl_dist.load_encoder(out)


def rewrite(folder: Path, **changes: Any) -> None:
    """Change what encoder.json says, and its digest with it."""
    facts = json.loads((folder / FACTS).read_text())
    del facts["self"]
    write_facts(folder, {**facts, **changes})


@pytest.mark.parametrize(
    "change", [{"together": 0}, {"image_size": "32"}, {"image_size": None}, {"network": {"name": "resnet9"}}]
)
def test_facts_that_cannot_be_are_one_line(runs: dict[str, Path], tmp_path: Path, change: dict[str, Any]) -> None:
    export(runs["resnet8"], tmp_path / "out", "safetensors")
    rewrite(tmp_path / "out", **change)
    with pytest.raises((CheckpointError, ConfigError)):
        ssl_dist.load_encoder(tmp_path / "out")


def test_facts_and_weights_that_were_edited_are_noticed(runs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(runs["resnet8"], out, "safetensors")
    text = (out / FACTS).read_text()
    (out / FACTS).write_text(text.replace('"image_size": 16', '"image_size": 32'))
    with pytest.raises(CheckpointError, match=r"encoder\.json differs from its checksum"):
        ssl_dist.load_encoder(out)
    (out / FACTS).write_text(text)
    (out / WEIGHTS).write_bytes(b"no safetensors")
    rewrite(out, sha256={WEIGHTS: sha256(out / WEIGHTS)})
    with pytest.raises(CheckpointError, match="is not a whole exported encoder"):
        ssl_dist.load_encoder(out)


@pytest.mark.parametrize("damage", ["{}", "[]", "no JSON", '{"self": ""}'])
def test_a_damaged_folder_is_one_line(runs: dict[str, Path], tmp_path: Path, damage: str) -> None:
    export(runs["resnet8"], tmp_path / "out", "safetensors")
    write_text(tmp_path / "out" / FACTS, damage)
    with pytest.raises(CheckpointError):
        ssl_dist.load_encoder(tmp_path / "out")


def test_what_cannot_be_loaded_here_says_so(runs: dict[str, Path], tmp_path: Path) -> None:
    export(runs["resnet8"], tmp_path / "script", "torchscript")
    with pytest.raises(RunError, match="has the format torchscript, which its own library loads"):
        ssl_dist.load_encoder(tmp_path / "script")
    export(runs["resnet8"], tmp_path / "out", "safetensors")
    with pytest.raises(RunError, match="is one exported encoder, and best chooses among a run's"):
        ssl_dist.load_encoder(tmp_path / "out", "best")
