"""Weights, and a model.py that needs torch and safetensors, and torchvision for its networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ssl_dist.checkpoint.exported import WEIGHTS
from ssl_dist.checkpoint.files import save_tensors
from ssl_dist.export.formats.base import Format, Source, refuse_nothing, usage_of
from ssl_dist.export.standalone import model_source

_SOURCE = "model.py"


def _write(source: Source, folder: Path) -> None:
    tensors = source.backbone.body.state_dict()
    if source.head is not None:
        tensors = {f"body.{name}": tensor for name, tensor in tensors.items()}
        tensors |= {f"head.{name}": tensor for name, tensor in source.head.state_dict().items()}
    save_tensors(tensors, folder / WEIGHTS)
    normalisation, outputs = source.backbone.normalisation, (source.outputs, source.num_outputs)
    text = model_source(source.settings, source.image_size, normalisation, outputs, source.head)
    (folder / _SOURCE).write_text(text, encoding="utf-8")


def _load(source: Source, folder: Path) -> nn.Module:
    here: dict[str, Any] = {"__file__": str(folder / _SOURCE), "__name__": "model"}
    exec(compile((folder / _SOURCE).read_text(encoding="utf-8"), _SOURCE, "exec"), here)  # leaves no __pycache__ there
    network: nn.Module = here["load"]()
    return network


_USAGE = "from model import load  # model.py of this folder\n\nnetwork = load()"
SAFETENSORS = Format(refuse_nothing, _write, _load, usage_of(_USAGE))
