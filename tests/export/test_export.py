"""An exported encoder gives the features of its run's, in its own library, or it is not written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import ssl_dist
from ssl_dist.checkpoint import State
from ssl_dist.checkpoint.exported import FACTS, WEIGHTS, sha256, write_facts
from ssl_dist.checkpoint.mirror import Mirror
from ssl_dist.errors import CheckpointError, ConfigError, ExportError, RunError, StoreError
from ssl_dist.export import export, exporting
from ssl_dist.export.formats import FORMATS
from ssl_dist.files import write_text
from ssl_dist.store import ImageStore
from ssl_dist.uris import join_uri
from tests.command import Command
from tests.helpers import resolved_config, save

BUILT_IN: dict[str, dict[str, Any]] = {
    "resnet8": {"name": "resnet8", "stem": "half", "width": 8},
    "resnet20": {"name": "resnet20", "stem": "standard", "normalisation": "imagenet"},
    "wrn45-2": {"name": "wrn45-2", "stem": "small"},
    "convnet": {"name": "convnet", "dropout": 0.3},
    "autoencoder": {"name": "autoencoder"},
}
TORCHVISION: dict[str, dict[str, Any]] = {
    "resnet18": {"name": "resnet18", "normalisation": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}},
    "mobilenet_v3_small": {"name": "mobilenet_v3_small", "normalisation": "inception"},
}
STEMS = {"resnet18, stem small": {"name": "resnet18", "stem": "small"}}
NETWORKS = {**BUILT_IN, **TORCHVISION, **STEMS}
CASES = [
    *((name, "safetensors") for name in NETWORKS),
    *((name, "torchvision") for name in TORCHVISION),
    *((name, "torchscript") for name in NETWORKS),
]
EXTRAS = [*(("vit_b_32", format_) for format_ in FORMATS), ("resnet18", "timm"), *((name, "onnx") for name in NETWORKS)]

# The scripts of the cards, each in its folder, in one process that cannot import us.
ALONE = """
import contextlib, json, os, sys
import numpy, torch

sys.modules["ssl_dist"] = None
sys.path.insert(0, "")
for folder, code in json.load(sys.stdin):
    os.chdir(folder)
    sys.modules.pop("model", None)
    here = {"images": torch.from_numpy(numpy.load("images.npy"))}
    with torch.no_grad():
        exec(code, here)
    numpy.save("features.npy", numpy.asarray(here["features"]))
"""


@pytest.fixture(scope="module")
def runs(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write a run of each network, whose running statistics are not those of the start."""
    folder, found = tmp_path_factory.mktemp("runs"), {}
    for number, (name, backbone) in enumerate(NETWORKS.items()):
        size = {"augment__size_px": 32} if backbone["name"] != "resnet8" else {}
        config = resolved_config(small_store, backbone=backbone, probe=None, seed=number, **size)
        method = config.initial_method().train()
        torch.manual_seed(number)
        with torch.no_grad():
            method.backbone(torch.rand(8, 3, 32 if size else 16, 32 if size else 16))
        found[name] = folder / f"run-{number}"
        save(State(method.state_dict(), {}), found[name], 3, config)
    return found


def inputs_of(encoder: ssl_dist.Encoder, store: Path, count: int = 5) -> Tensor:
    pixels = ImageStore(store).gather(np.arange(count))
    return torch.stack([encoder.transform(image) for image in pixels])


@pytest.fixture(scope="module")
def transformer(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a run of a network that is made for images of one size."""
    run = tmp_path_factory.mktemp("runs") / "vit"
    config = resolved_config(small_store, backbone={"name": "vit_b_32"}, probe=None, augment__size_px=64)
    method, generator = config.initial_method(), torch.Generator().manual_seed(0)
    with torch.no_grad():  # norms begin alike and biases at 0: a tensor in the place of another would not be noticed
        for parameter in method.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    save(State(method.state_dict(), {}), run, 3, config)
    return run


@pytest.fixture(scope="module")
def exported(runs: dict[str, Path], small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Path]:
    return export_all(CASES, runs, small_store, tmp_path_factory.mktemp("exported"))


def export_all(cases: list[tuple[str, str]], runs: dict[str, Path], store: Path, folder: Path) -> dict[Any, Path]:
    """Export every case, and run its card's script; return the folders, each with images.npy and features.npy."""
    folders, scripts = {}, []
    for number, (name, format_) in enumerate(cases):
        out = folders[name, format_] = folder / str(number)
        done = export(runs[name], out, format_)
        assert done.difference <= 1e-5
        assert done.num_images == 51
        np.save(out / "images.npy", inputs_of(ssl_dist.load_encoder(runs[name]), store).numpy())
        [usage] = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
        scripts.append((str(out), usage))
    subprocess.run([sys.executable, "-c", ALONE], input=json.dumps(scripts), text=True, check=True)
    return folders


@pytest.mark.parametrize(("name", "format_"), CASES)
def test_the_cards_script_gives_the_features_of_the_run(
    runs: dict[str, Path], exported: dict[Any, Path], name: str, format_: str
) -> None:
    expect_the_features(exported[name, format_], runs[name])


def expect_the_features(folder: Path, run: Path) -> None:
    """Expect what the card's script computed to be what the run's encoder does."""
    encoder = ssl_dist.load_encoder(run, device="cpu")
    expected = encoder.embed(torch.from_numpy(np.load(folder / "images.npy"))).numpy()
    found = np.load(folder / "features.npy")
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.abs(found).max() > 0


@pytest.mark.extras
def test_other_libraries_give_the_features_of_the_run(
    runs: dict[str, Path], transformer: Path, small_store: Path, tmp_path: Path
) -> None:
    every = {**runs, "vit_b_32": transformer}
    for (name, _), folder in export_all(EXTRAS, every, small_store, tmp_path).items():
        expect_the_features(folder, every[name])


def test_weights_that_one_onnx_file_cannot_hold_are_refused(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssl_dist.export.formats.onnx._MOST_BYTES", 1000)
    with pytest.raises(ConfigError, match=r"the weights of resnet8 are .* and an ONNX file holds 2\.1 GB"):
        export(runs["resnet8"], tmp_path / "out", "onnx")


@pytest.mark.parametrize(
    ("format_", "says"), [("timm", "timm needs timm: "), ("onnx", "onnx needs onnx, onnxscript, onnxruntime: ")]
)
def test_what_is_not_installed_is_named(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: str, says: str
) -> None:
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=rf"{says}pip install 'ssl_dist\[{format_}\]'"):
        export(runs["resnet18"], tmp_path / "out", format_)


@pytest.mark.parametrize("name", NETWORKS)
def test_load_encoder_loads_an_exported_folder(
    runs: dict[str, Path], exported: dict[Any, Path], small_store: Path, name: str
) -> None:
    ours = ssl_dist.load_encoder(runs[name])
    for format_ in ("safetensors", "torchvision") if name in TORCHVISION else ("safetensors",):
        theirs = ssl_dist.load_encoder(exported[name, format_])
        assert (ours.dim, ours.image_size) == (theirs.dim, theirs.image_size)
        assert torch.equal(ours.embed(small_store), theirs.embed(small_store))


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


@pytest.mark.parametrize(
    ("name", "format_", "match"),
    [
        ("resnet8", "torchvision", "torchvision has no network resnet8: export it with --format safetensors"),
        ("resnet18, stem small", "torchvision", "torchvision's resnet18 has no stem small"),
        ("mobilenet_v3_small", "timm", "timm has no network mobilenet_v3_small: export it with --format safetensors"),
        ("resnet8", "onx", "--format onx: it is one of safetensors, torchvision, timm, onnx, torchscript"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(
    runs: dict[str, Path], tmp_path: Path, name: str, format_: str, match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        export(runs[name], tmp_path / "out", format_)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_and_a_store_that_is_gone_are_refused(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    (tmp_path.parent / "link").symlink_to(tmp_path.parent / "nothing")
    for out in (tmp_path, tmp_path / "file", Path("new/.."), Path("."), tmp_path.parent / "link"):
        with pytest.raises(ConfigError, match=r"OUT .*: it is there already, and not empty: give a new folder"):
            export(runs["resnet8"], out, "safetensors")
    with pytest.raises(RunError, match="cannot be made"):
        export(runs["resnet8"], tmp_path / "file" / "out", "safetensors")
    with pytest.raises(StoreError, match="features are compared on real images: name a store by --images"):
        export(runs["resnet8"], tmp_path / "out", "safetensors", images=str(tmp_path / "gone"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def off_by_a_little(tensors: dict[str, Tensor]) -> None:
    tensors["0.weight"] *= 1.001


def one_too_many(tensors: dict[str, Tensor]) -> None:
    tensors["extra"] = torch.zeros(1)


def one_too_few(tensors: dict[str, Tensor]) -> None:
    del tensors["1.running_mean"]


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        (off_by_a_little, r"features differ by \S+ of the largest, more than 1e-05: no folder was written"),
        (one_too_many, "cannot be made or loaded.*extra"),
        (one_too_few, "cannot be made or loaded.*running_mean"),
    ],
)
def test_a_file_that_is_not_the_encoder_is_not_left_behind(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Any, match: str
) -> None:
    good = FORMATS["safetensors"]

    def write(source: Any, folder: Path) -> None:
        good.write(source, folder)
        tensors = load_file(folder / WEIGHTS)
        fault(tensors)
        save_file(tensors, folder / WEIGHTS)

    monkeypatch.setitem(FORMATS, "safetensors", good._replace(write=write))
    with pytest.raises(ExportError, match=match):
        export(runs["resnet8"], tmp_path / "out", "safetensors")
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_a_card_with_the_figures_of_this_step(
    command: Command, runs: dict[str, Path], tmp_path: Path
) -> None:
    run, out = runs["resnet8"], tmp_path / "out"
    row = {"encoder": "trained, 3 steps", "features": "backbone", "top1": 0.5, "top1_interval": [0.4, 0.6]}
    accuracies = [{"evaluation": "kNN, k = 1", "protocol": "Accuracy on many images.", "rows": [row]}]
    write_text(run / "evaluation.json", json.dumps({"step": 3, "accuracies": accuracies}))
    done = command("export", run, out, "--licence", "CC-BY-4.0", "--json")
    assert done.code == 0, done.err
    assert done.json["difference"] <= 1e-5
    assert done.json["licence"] == "CC-BY-4.0"
    card = (out / "README.md").read_text()
    assert "| kNN, k = 1 | trained, 3 steps | backbone | 50.00 | 40.0 .. 60.0 |" in card
    assert "kNN, k = 1: Accuracy on many images." in card
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


def test_mistakes_are_one_line_and_exit_code_2(command: Command, runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for arguments in (
        (tmp_path / "nowhere", tmp_path / "out"),
        (runs["resnet8"], tmp_path),
        (runs["resnet8"], tmp_path / "out", "--format", "torchvision"),
        (runs["resnet8"], tmp_path / "out", "--checkpoint", 7),
    ):
        found = command("export", *arguments)
        assert (found.code, found.out) == (2, "")
        assert found.err.count("error: ") == 1
        assert "Traceback" not in found.err


@pytest.mark.parametrize(
    ("name", "format_", "files", "says"),
    [
        ("resnet8", "safetensors", {"model.py", WEIGHTS}, "Their colours are not normalised."),
        ("resnet20", "safetensors", {"model.py", WEIGHTS}, "Do not normalise their colours: the network does."),
        ("resnet18", "torchvision", {WEIGHTS}, "normalised as above, by the mean (0.4, 0.5, 0.6) and the deviation"),
        ("resnet18", "torchscript", {"model.pt"}, "Do not normalise their colours: the network does."),
    ],
)
def test_a_folder_has_its_files_alone_and_says_who_normalises(
    exported: dict[Any, Path], name: str, format_: str, files: set[str], says: str
) -> None:
    folder = exported[name, format_]
    ours = {path.name for path in folder.iterdir()} - {"images.npy", "features.npy", "__pycache__"}
    assert ours == {"README.md", FACTS, *files}
    assert set(json.loads((folder / FACTS).read_text())["sha256"]) == files
    assert says in (folder / "README.md").read_text()
