"""An exported encoder gives the features of its run's, in the library of its format and in ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import ssl_dist
from ssl_dist.checkpoint.exported import FACTS, WEIGHTS
from ssl_dist.errors import ExportError
from ssl_dist.export import export
from ssl_dist.export.formats import FORMATS, Part
from tests.export.cases import CLASSIFIERS, NETWORKS, OF_TORCHVISION, Case, expect_the_outputs, export_all, inputs_of

CASES: list[Case] = [
    *((name, "backbone", "safetensors") for name in NETWORKS),
    *((name, "backbone", "torchvision") for name in OF_TORCHVISION),
    *((name, "backbone", "torchscript") for name in ("resnet20", "convnet")),  # the others are among the extras
    ("resnet8", "head", "safetensors"),
    ("resnet20", "head", "torchscript"),
    *((name, "classifier", "safetensors") for name in CLASSIFIERS),
    ("resnet20 classifies", "classifier", "torchscript"),
    ("mobilenet_v3_small classifies", "classifier", "torchvision"),
]
EXTRAS: list[Case] = [
    *((name, "backbone", format_) for name in NETWORKS for format_ in ("onnx", "torchscript")),
    ("resnet20", "head", "onnx"),
    ("resnet20 classifies", "classifier", "onnx"),
    *(("resnet18", "backbone", format_) for format_ in ("timm", "hf")),
    *(("resnet50", "backbone", format_) for format_ in ("timm", "hf")),
    *(("resnet18 classifies", "classifier", format_) for format_ in ("timm", "hf")),
    *(("vit_b_32", "backbone", format_) for format_ in FORMATS),
    *(("vit_b_32 classifies", "classifier", format_) for format_ in ("torchvision", "timm", "hf")),
]


@pytest.fixture(scope="module")
def exported(runs: dict[str, Path], small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Case, Path]:
    return export_all(CASES, runs, small_store, tmp_path_factory.mktemp("exported"))


@pytest.mark.parametrize(("name", "part", "format_"), CASES)
def test_the_cards_script_gives_the_outputs_of_the_run(
    runs: dict[str, Path], exported: dict[Case, Path], name: str, part: Part, format_: str
) -> None:
    expect_the_outputs(exported[name, part, format_], runs[name], part)


@pytest.mark.extras
@pytest.mark.parametrize("format_", FORMATS)
def test_other_libraries_and_larger_networks_give_the_outputs_of_the_run(
    runs: dict[str, Path], more_runs: dict[str, Path], small_store: Path, tmp_path: Path, format_: str
) -> None:
    every, cases = runs | more_runs, [case for case in EXTRAS if case[2] == format_]
    for (name, part, _), folder in export_all(cases, every, small_store, tmp_path).items():
        expect_the_outputs(folder, every[name], part)


@pytest.mark.extras
@pytest.mark.parametrize(("tensor", "kind"), [("embedder.embedder.normalization.bias", "missing"), ("x", "unexpected")])
def test_a_folder_for_transformers_lacks_no_tensor_and_has_no_other(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensor: str, kind: str
) -> None:
    good = FORMATS["hf"]

    def write(source: Any, folder: Path) -> None:
        good.write(source, folder)
        tensors = load_file(folder / WEIGHTS)
        tensors = {name: one for name, one in tensors.items() if name != tensor}
        save_file(tensors | ({} if kind == "missing" else {tensor: torch.zeros(1)}), folder / WEIGHTS, {"format": "pt"})

    monkeypatch.setitem(FORMATS, "hf", good._replace(write=write))
    with pytest.raises(ExportError, match=rf"transformers loads it with .*'{kind}_keys': \['{tensor}'\]"):
        export(runs["resnet18"], tmp_path / "out", "hf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.extras
def test_transformers_processor_prepares_a_photograph_as_training_does(runs: dict[str, Path], tmp_path: Path) -> None:
    export(runs["resnet18"], tmp_path / "out", "hf")
    transformers = pytest.importorskip("transformers")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).resize((90, 120), Image.Resampling.BICUBIC)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    prepared = processor([picture], return_tensors="pt", do_normalize=False)["pixel_values"][0]
    ours = ssl_dist.load_encoder(runs["resnet18"], device="cpu").transform(picture)
    assert prepared.shape == ours.shape
    assert (255 * (prepared - ours)).abs().max() < 2.5  # Pillow and torchvision round bicubic weights differently


@pytest.mark.parametrize(("name", "part", "format_"), [case for case in CASES if case[2] != "torchscript"])
def test_load_encoder_loads_the_backbone_of_an_exported_folder(
    runs: dict[str, Path], exported: dict[Case, Path], small_store: Path, name: str, part: Part, format_: str
) -> None:
    ours, theirs = ssl_dist.load_encoder(runs[name]), ssl_dist.load_encoder(exported[name, part, format_])
    assert (ours.dim, ours.image_size) == (theirs.dim, theirs.image_size)
    inputs = inputs_of(ours, small_store)
    assert torch.equal(ours.embed(inputs), theirs.embed(inputs))


@pytest.mark.parametrize(
    ("name", "format_", "files", "says"),
    [
        ("resnet8", "safetensors", {"model.py", WEIGHTS}, "Their colours are not normalised."),
        ("resnet20", "safetensors", {"model.py", WEIGHTS}, "Do not normalise their colours: the network does."),
        ("resnet18", "torchvision", {WEIGHTS}, "normalised as above, by the mean (0.4, 0.5, 0.6) and the deviation"),
        ("resnet20", "torchscript", {"model.pt"}, "Do not normalise their colours: the network does."),
    ],
)
def test_a_folder_has_its_files_alone_and_says_who_normalises(
    exported: dict[Case, Path], name: str, format_: str, files: set[str], says: str
) -> None:
    folder = exported[name, "backbone", format_]
    ours = {path.name for path in folder.iterdir()} - {"images.npy", "found.npy", "__pycache__"}
    assert ours == {"README.md", FACTS, *files}
    assert set(json.loads((folder / FACTS).read_text())["sha256"]) == files
    assert says in (folder / "README.md").read_text()
