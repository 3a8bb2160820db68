"""torch's optimizers without torch's compiler, which they import when they are made and at their first step.

They do so only to keep the compiler out of some of their methods. The import of 884 modules takes 2.6 s of CPU at each
worker's start (an Intel Xeon of 2.5 GHz, torch 2.14).
"""

from __future__ import annotations

import inspect
from typing import TypeVar

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
