"""Counter of the bytes that a rank sends: it intercepts every collective that torch dispatches, in any group."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Traffic(TorchDispatchMode):
    """Counts all collectives in a block ``with Traffic(world_size) as sent:``, those of backward passes included.

    The bytes are those of the ring algorithms. For W ranks with a tensor of b bytes each, a rank sends (W-1) b in an
    all-gather, 2 (W-1)/W b in an all-reduce and (W-1)/W b in a reduce-scatter.

    Attributes:
        bytes: bytes that this rank sent.
        calls: names of the collectives, in order.
    """

    def __init__(self, world_size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0.0
        self.calls: list[str] = []
        gathering, others = world_size - 1, (world_size - 1) / world_size
        # name -> (index of the argument with the rank's tensors, bytes sent for each of their bytes)
        self._costs = {
            "allgather_": (1, gathering),
            "_allgather_base_": (1, gathering),
            "allreduce_": (0, 2 * others),
            "reduce_scatter_": (1, others),
            "_reduce_scatter_base_": (1, others),
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func._schema.name.removeprefix("c10d::")
            number, factor = self._costs[name]
            brought = [leaf for leaf in tree_leaves(args[number]) if isinstance(leaf, Tensor)]
            self.bytes += factor * sum(leaf.numel() * leaf.element_size() for leaf in brought)
            self.calls.append(name)
        return func(*args, **(kwargs or {}))
