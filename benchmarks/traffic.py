"""Counts what a rank sends, by seeing every collective of every process group as torch hands it to them."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Traffic(TorchDispatchMode):
    """Within ``with Traffic(world_size) as sent:`` all collectives are counted, those of backward passes too.

    Bytes are those of the ring algorithms, for W ranks and a tensor of b bytes on each: gathering (W-1) b, reducing to
    all 2 (W-1)/W b, reducing to parts (W-1)/W b.

    Attributes:
        bytes: sent by this rank.
        calls: names of the collectives, in order.
    """

    def __init__(self, world_size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0.0
        self.calls: list[str] = []
        gathering, others = world_size - 1, (world_size - 1) / world_size
        # name -> (number of the argument that holds what a rank brings, bytes sent per byte of it)
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
