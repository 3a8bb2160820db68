"""Build modules from tensors that have shapes but no values, so that even large ones take no memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_FILLED = frozenset({torch.empty, torch.full, torch.ones, torch.rand, torch.randn, torch.zeros})
_LIKE_THEIR_INPUT = frozenset({torch.Tensor.normal_, torch.Tensor.uniform_, nn.functional.normalize})


class WithoutValues(TorchFunctionMode):
    """Within this context, the tensors that weights and buffers begin as are on torch's meta device.

    ``torch.device("meta")`` would take also the small tables, as ``torch.arange``'s, that some networks read while they
    are built, such as RegNet's widths.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call ``func``, on the meta device where it makes a filled tensor.

        Return the input itself where the function's result has the input's shape. To call the function on the meta
        device, torch would import its compiler, which takes three seconds.
        """
        if func in _LIKE_THEIR_INPUT and args and args[0].is_meta:
            return args[0]
        given = dict(kwargs or {})
        if func in _FILLED and given.get("device") is None:
            given["device"] = "meta"
        return func(*args, **given)
