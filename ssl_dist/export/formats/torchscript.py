"""One file that holds network and weights, for ``torch.jit.load`` and for C++."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssl_dist.export.formats.base import Format, Source, refuse_nothing, usage_of

_FILE = "model.pt"
_TRACED = 2  # images of the batch that is traced


def _write(source: Source, folder: Path) -> None:
    size = source.image_size
    with torch.no_grad(), _without_warnings():
        traced: Any = torch.jit.trace(source.network, torch.rand(_TRACED, 3, size, size), check_trace=False)
        traced.save(str(folder / _FILE))


def _load(source: Source, folder: Path) -> nn.Module:
    with _without_warnings():
        loaded: nn.Module = torch.jit.load(str(folder / _FILE))
    return loaded


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence that torch.export is newer, and that a trace may be wrong: the comparison of features would find it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


TORCHSCRIPT = Format(refuse_nothing, _write, _load, usage_of(f'import torch\n\nnetwork = torch.jit.load("{_FILE}")'))
