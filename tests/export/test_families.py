"""One network of each family of torchvision's is exported: what docs/encoder.md says of "all" is tried."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from ssl_dist.export import export
from ssl_dist.export.formats import Part
from tests.export.cases import write_run
from tests.test_backbones import TORCHVISION

OTHER_CLASSIFIERS = ("maxvit_t", "mnasnet0_5", "squeezenet1_1")  # refused in words


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_weights_and_scripts_of_every_family_give_its_outputs(name: str, small_store: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", small_store, 0, name=name, hidden=None)
    cases: list[tuple[Part, str]] = [("backbone", "safetensors"), ("classifier", "torchscript")]
    cases += [] if name in OTHER_CLASSIFIERS else [("classifier", "torchvision")]
    for part, format_ in cases:
        assert export(run, tmp_path / format_, format_, part=part).difference <= 1e-5
    with zipfile.ZipFile(tmp_path / "torchscript" / "model.pt") as script:
        code = [script.read(name) for name in script.namelist() if name.endswith(".py")]
    assert code
    assert not any(b'torch.device("cpu")' in one for one in code), "it would make tensors there on a GPU too"


@pytest.mark.slow
@pytest.mark.extras
@pytest.mark.parametrize("name", TORCHVISION)
def test_onnx_of_every_family_gives_its_features(name: str, small_store: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    run = write_run(tmp_path / "run", small_store, 0, name=name)
    assert export(run, tmp_path / "out", "onnx").difference <= 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    for count in (1, 3):
        images = torch.rand(count, 3, TORCHVISION[name], TORCHVISION[name]).numpy()
        assert len(session.run(["features"], {"images": images})[0]) == count
