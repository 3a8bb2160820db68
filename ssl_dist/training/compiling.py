"""torch.compile around the backbone's training pass."""

from __future__ import annotations

import logging
import shutil
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from ssl_dist.config import RunConfig

log = logging.getLogger(__name__)


def compile_backbone(backbone: nn.Module, config: RunConfig, device: torch.device) -> bool:
    """Compile the forward pass in training mode as ``engine.compile`` says; return whether it was.

    Evaluation, whose batches have other sizes, keeps the plain pass. The module's hooks stay outside the compiled code.
    """
    if config.engine.compile == "off":
        return False
    if missing := _missing_compiler(device):
        log.warning("engine.compile %s: %s, so the backbone is not compiled", config.engine.compile, missing)
        return False
    plain = backbone.forward
    compiled = torch.compile(plain, dynamic=False, mode=config.engine.compile)

    def forward(*inputs: Any) -> Any:
        return compiled(*inputs) if backbone.training else plain(*inputs)

    backbone.forward = forward
    return True


def _missing_compiler(device: torch.device) -> str | None:
    """Return a clause that says what is missing, or None."""
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        return "no C++ compiler was found"
    if device.type == "cuda" and find_spec("triton") is None:
        return "the package triton is missing"
    return None
