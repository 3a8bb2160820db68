"""Weights, and a model.py that needs torch and safetensors alone, and torchvision for its networks."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from torch import nn

from ssl_dist.checkpoint.exported import WEIGHTS
from ssl_dist.checkpoint.files import save_tensors
from ssl_dist.export.formats.base import Format, Source, refuse_nothing, usage_of
from ssl_dist.export.standalone import model_source

_SOURCE = "model.py"


def _write(source: Source, folder: Path) -> None:
    backbone, settings, image_size = source
    save_tensors(backbone.body.state_dict(), folder / WEIGHTS)
    text = model_source(settings, backbone.dim, image_size, backbone.normalisation)
    (folder / _SOURCE).write_text(text, encoding="utf-8")


def _load(source: Source, folder: Path) -> nn.Module:
    spec = importlib.util.spec_from_file_location("_exported_model", folder / _SOURCE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network: nn.Module = module.load(folder)
    return network


_USAGE = "from model import load  # model.py of this folder\n\nnetwork = load()"
SAFETENSORS = Format(refuse_nothing, _write, _load, usage_of(_USAGE))
