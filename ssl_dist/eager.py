"""torch's optimizers and torchvision without torch's compiler, which both import and hardly use.

Optimizers import it when they are made and at their first step, only to keep it out of some of their methods;
torchvision, to ask in its operations on boxes whether it works. The import of 884 modules takes 2.6 s of CPU at each
worker's start (an Intel Xeon of 2.5 GHz, torch 2.14).
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any, TypeVar

import torch

Kind = TypeVar("Kind", bound=torch.optim.Optimizer)


def eager(kind: type[Kind]) -> type[Kind]:
    """Return a class of optimizers that computes what ``kind`` does, and whose methods do not import the compiler.

    The step is not differentiable itself, which is the default of ``kind``.
    """
    for method in vars(torch.optim.Optimizer).values():
        if plain := getattr(method, "__wrapped__", None):
            plain.__dynamo_disable = plain  # torch._compile asks for it before it imports anything
    return type(kind.__name__, (kind,), {"step": torch.no_grad()(inspect.unwrap(kind.step))})


@contextlib.contextmanager
def compiler_put_off() -> Iterator[None]:
    """Import modules in the block that take ``is_compile_supported`` from the compiler, which its call imports.

    A module that takes anything else from the compiler imports it at once.
    """
    names = ("torch._dynamo", "torch._dynamo.utils")
    if names[0] in sys.modules:
        yield
        return

    def real(module: str, name: str) -> Any:
        if name.startswith("__") and (module, name) != (names[0], "__path__"):  # inspect asks each module for its file
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        end()
        return getattr(importlib.import_module(module), name)

    def end() -> None:
        for name, one in stand_ins.items():
            if sys.modules.get(name) is one:
                del sys.modules[name]

    def is_compile_supported(device_type: str) -> bool:
        return bool(real(names[1], "is_compile_supported")(device_type))

    stand_ins = {name: ModuleType(name) for name in names}
    for name, one in stand_ins.items():
        vars(one)["__getattr__"] = partial(real, name)
    vars(stand_ins[names[1]])["is_compile_supported"] = is_compile_supported
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        end()
