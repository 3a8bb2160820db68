"""A recipe proposed for a store and a machine, by a table of sizes and by counting images, cores and GPUs."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

_STEPS = 2000  # of a proposed run; each recipe of docs/results.md had 585 or more
_EPOCHS = (5, 200)  # fewest and most


class Network(NamedTuple):
    """The network for images of up to ``up_to_px`` pixels a side, and the size of their views."""

    up_to_px: float
    backbone: dict[str, Any]
    policy: str
    view_px: int | None = None


# Where the time of a run is an evening's: without a GPU 8 layers, with one 18 or 50.
ON_CPU = (
    Network(20, {"name": "resnet8", "stem": "small", "width": 16}, "simclr-small"),
    Network(48, {"name": "resnet8", "stem": "half", "width": 32}, "simclr-small"),
    Network(96, {"name": "resnet8", "stem": "standard", "width": 32}, "simclr"),
    Network(math.inf, {"name": "resnet8", "stem": "standard", "width": 32}, "simclr", 96),
)
ON_GPU = (
    Network(48, {"name": "resnet18", "stem": "small"}, "simclr-small"),
    Network(96, {"name": "resnet50", "stem": "half"}, "simclr"),
    Network(224, {"name": "resnet50", "stem": "standard"}, "simclr"),
    Network(math.inf, {"name": "resnet50", "stem": "standard"}, "simclr", 224),
)


def propose(
    store: str, *, num_images: int, size_px: int, num_classes: int, cores: int, gpus: int, bf16: bool
) -> dict[str, Any]:
    """Return the sections of a recipe of SimCLR.

    The batch is the largest power of two up to 256 (with GPUs 1,024) that a quarter of the images fills, 2 or more.
    Workers are as many as there are cores, or GPUs, and micro-batches of 16 images or more, in powers of two. The run
    is as long as 2,000 steps, within 5 to 200 epochs.

    Args:
        num_classes: classes with labels; fewer than 2 give a probe that needs none.
        bf16: whether the CPU has instructions for bfloat16; GPUs are taken to have them.
    """
    network = next(one for one in (ON_GPU if gpus else ON_CPU) if size_px <= one.up_to_px)
    batch = 2 ** min(10 if gpus else 8, max(1, int(math.log2(max(2, num_images / 4)))))
    workers = 2 ** int(math.log2(max(1, min(gpus or cores, batch // 16))))
    epochs = min(max(math.ceil(_STEPS * batch / num_images), _EPOCHS[0]), _EPOCHS[1])
    every = max(1, epochs // 10)
    bank = min(4096, num_images * 4 // 5)
    labelled = {"kind": "knn", "k": min(20, max(1, bank // 2))} if num_classes > 1 else {"kind": "rankme"}
    return {
        "seed": 0,
        "epochs": epochs,
        "data": {"store": store},
        "augment": {"recipe": network.policy} | ({"size_px": network.view_px} if network.view_px else {}),
        "backbone": network.backbone,
        "method": {"name": "simclr", "temperature": 0.2},
        "batch": {"size": batch, "micro": min(batch // workers, 256 if gpus else 128)},
        "optim": {"name": "adamw", "lr": 0.003, "weight_decay": 0.0001, "warmup_epochs": every},
        "engine": {"precision": "bf16" if gpus or bf16 else "fp32", "zero_stage": 1},
        "probe": {**labelled, "every_epochs": every},
        "checkpoint": {"every_epochs": every},
        "cluster": {"workers": workers, "gpu": bool(gpus)},
    }
