"""One network of each family of torchvision's is exported: what docs/encoder.md says of "all" is tried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    script: Any = torch.jit.load(tmp_path / "torchscript" / "model.pt", map_location="meta")
    size = TORCHVISION[name]
    found = script(torch.rand(3, 3, size, size, device="meta"))  # fails if the script makes a tensor on the CPU
    assert found.shape == (3, 3)


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
