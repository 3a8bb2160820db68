"""One file of network and weights for ONNX Runtime and other engines; the batch may have any size."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_dist.errors import ConfigError
from ssl_dist.export.formats.base import Format, Source, usage_of

_FILE = "model.onnx"
_MOST_BYTES = 2**31 - 2**24  # protobuf's limit, less the room of the network's description


def _check(source: Source) -> None:
    """Refuse a network whose weights do not fit into one ONNX file.

    Raises:
        ConfigError: they do not.
    """
    size = sum(tensor.nbytes for tensor in source.network.state_dict().values())
    if size >= _MOST_BYTES:
        raise ConfigError(
            f"the weights of {source.settings.name} are {size / 1e9:.1f} GB, and an ONNX file holds 2.1 GB: export it"
            " with --format safetensors"
        )


def _write(source: Source, folder: Path) -> None:
    size = source.image_size
    told = io.StringIO()  # its steps, which are printed
    with warnings.catch_warnings(), _quiet("torch.onnx"), contextlib.redirect_stdout(told), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            source.network,
            (torch.rand(2, 3, size, size),),
            folder / _FILE,
            input_names=["images"],
            output_names=[source.outputs],
            dynamic_shapes={"images": {0: torch.export.Dim("n")}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )


@contextlib.contextmanager
def _quiet(logger: str) -> Iterator[None]:
    level = logging.getLogger(logger).level
    logging.getLogger(logger).setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.getLogger(logger).setLevel(level)


class _Session(nn.Module):
    """The file in ONNX Runtime, on the CPU."""

    def __init__(self, file: Path, outputs: str) -> None:
        import onnxruntime

        super().__init__()
        self._outputs = outputs
        self._session: Any = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def forward(self, images: Tensor) -> Tensor:
        [found] = self._session.run([self._outputs], {"images": images.numpy()})
        return torch.from_numpy(found)


def _load(source: Source, folder: Path) -> nn.Module:
    import onnx

    onnx.checker.check_model(folder / _FILE, full_check=True)
    return _Session(folder / _FILE, source.outputs)


_USAGE = f'import onnxruntime\n\nsession = onnxruntime.InferenceSession("{_FILE}")'
_CALL = 'session.run(["OUTPUTS"], {"images": images.numpy()})[0]'
ONNX = Format(_check, _write, _load, usage_of(_USAGE, _CALL), ["onnx", "onnxscript", "onnxruntime"], library="onnx")
