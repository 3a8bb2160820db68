"""One file of network and weights for ONNX Runtime and other engines; the batch may have any size."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_dist.export.formats.base import Format, Normalised, Source, refuse_nothing, usage_of

_FILE = "model.onnx"


def _write(source: Source, folder: Path) -> None:
    network, size = Normalised(source.backbone.body, source.backbone).eval(), source.image_size
    told = io.StringIO()  # its steps, which are printed
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(told), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.rand(2, 3, size, size),),
            folder / _FILE,
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes={"images": {0: torch.export.Dim("n")}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )


class _Session(nn.Module):
    """The file in ONNX Runtime, on one thread as the features that it is compared with."""

    def __init__(self, file: Path) -> None:
        import onnxruntime

        super().__init__()
        self._session: Any = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def forward(self, images: Tensor) -> Tensor:
        [features] = self._session.run(["features"], {"images": images.numpy()})
        return torch.from_numpy(features)


def _load(source: Source, folder: Path) -> nn.Module:
    import onnx

    onnx.checker.check_model(folder / _FILE, full_check=True)
    return _Session(folder / _FILE)


_USAGE = f'import onnxruntime\n\nsession = onnxruntime.InferenceSession("{_FILE}")'
_CALL = 'session.run(["features"], {"images": images.numpy()})[0]'
ONNX = Format(refuse_nothing, _write, _load, usage_of(_USAGE, _CALL), ["onnx", "onnxscript", "onnxruntime"])
