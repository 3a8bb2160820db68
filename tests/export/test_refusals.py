"""What cannot be exported is refused before any work, and what differs from its run leaves no folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ssl_dist import backbones
from ssl_dist.backbones import WithoutValues
from ssl_dist.checkpoint.exported import WEIGHTS
from ssl_dist.errors import ConfigError, ExportError, RunError, StoreError
from ssl_dist.export import export, exporting
from ssl_dist.export.formats import FORMATS, Source
from ssl_dist.settings import BackboneConfig
from tests.command import Command


@pytest.mark.parametrize(
    ("name", "part", "format_", "match"),
    [
        (
            "resnet8",
            "backbone",
            "torchvision",
            "torchvision has no network resnet8: export it with --format safetensors",
        ),
        ("resnet18, stem small", "backbone", "torchvision", "torchvision's resnet18 has no stem small"),
        (
            "mobilenet_v3_small",
            "backbone",
            "timm",
            "timm has no network mobilenet_v3_small: export it with --for",
        ),
        (
            "mobilenet_v3_small",
            "backbone",
            "hf",
            "resnet152 and vit_..., and this is mobilenet_v3_small: export",
        ),
        (
            "resnet18, stem small",
            "backbone",
            "hf",
            "transformers' ResNets have no stem small: export it with --for",
        ),
        (
            "resnet8",
            "backbone",
            "onx",
            "--format onx: it is one of safetensors, torchvision, timm, hf, onnx, tor",
        ),
        ("resnet8", "heads", "safetensors", "--part heads: it is one of backbone, head, classifier"),
        ("resnet8", "classifier", "safetensors", "a run of simclr has no classifier: take --part head"),
        ("resnet8 classifies", "head", "onnx", "a run of supervised has no projection head: take --part classifier"),
        *(
            ("resnet18", "head", format_, f"{library}'s networks have no projection head: export it with --format safe")
            for format_, library in [("torchvision", "torchvision"), ("timm", "timm"), ("hf", "transformers")]
        ),
    ],
)
def test_what_a_format_cannot_hold_is_refused(
    runs: dict[str, Path], tmp_path: Path, name: str, part: Any, format_: str, match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        export(runs[name], tmp_path / "out", format_, part=part)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "hidden", "match"),
    [
        ("resnet18", 8, "torchvision's networks have no classifier with a hidden layer"),
        ("squeezenet1_1", None, "squeezenet1_1 has another kind of classifier: export it with --format safetensors"),
        ("maxvit_t", None, "maxvit_t has another kind of classifier: export it with --format safetensors"),
        ("mnasnet0_5", None, "torchvision's MNASNet refuses tensors of a file: export it with --format safetensors"),
    ],
)
def test_classifiers_that_torchvision_does_not_have_are_refused(name: str, hidden: int | None, match: str) -> None:
    with WithoutValues():
        backbone = backbones.build(name)
        head = nn.Linear(backbone.dim, 3) if hidden is None else nn.Sequential(nn.Linear(backbone.dim, hidden))
    source = Source(backbone, BackboneConfig(name=name), 224, "classifier", head, ["a", "b", "c"])
    with pytest.raises(ConfigError, match=match):
        FORMATS["torchvision"].check(source)


@pytest.mark.parametrize(
    ("format_", "says"),
    [
        ("timm", "timm needs timm: "),
        ("hf", "hf needs transformers: "),
        ("onnx", "onnx needs onnx, onnxscript, onnxruntime: "),
    ],
)
def test_what_is_not_installed_is_named(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: str, says: str
) -> None:
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=rf"{says}pip install 'ssl_dist\[{format_}\]'"):
        export(runs["resnet18"], tmp_path / "out", format_)


def test_weights_that_one_onnx_file_cannot_hold_are_refused(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssl_dist.export.formats.onnx._MOST_BYTES", 1000)
    with pytest.raises(ConfigError, match=r"the weights of resnet8 are .* and an ONNX file holds 2\.1 GB"):
        export(runs["resnet8"], tmp_path / "out", "onnx")


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
