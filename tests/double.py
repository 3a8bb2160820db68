"""Runs in float64 through DeepSpeed, which knows half and single precision only."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

_MODULES = ("engine", "base_optimizer", "utils", "zero.stage_1_and_2", "zero.stage3", "zero.partition_parameters")


class _Torch:
    """torch, but what is called float32 there is float64."""

    def __getattr__(self, name: str) -> Any:
        return torch.float64 if name in ("float32", "float") else getattr(torch, name)


@contextlib.contextmanager
def deepspeed_in_double() -> Iterator[None]:
    """DeepSpeed's master weights, gradient buffers and collectives in float64: the same code, with 1e-16 for 6e-8."""
    with contextlib.ExitStack() as stack:
        for name in _MODULES:
            module = importlib.import_module(f"deepspeed.runtime.{name}")
            stack.enter_context(mock.patch.object(module, "torch", _Torch()))
        accelerator = importlib.import_module("deepspeed.accelerator").get_accelerator()
        stack.enter_context(mock.patch.object(accelerator, "supported_dtypes", return_value=[torch.float64]))
        yield
