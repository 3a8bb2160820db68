"""The size of a run's checkpoints, known before it starts."""

from __future__ import annotations

import torch

from ssl_dist.config import ResolvedConfig

_STATES = {"adamw": 2, "sgd": 1, "lars": 1}  # tensors of each parameter's size that the optimizer keeps


def expected_bytes(config: ResolvedConfig) -> int:
    """Return the bytes of one checkpoint's tensors; nothing of their size is allocated."""
    with torch.device("meta"):
        method = config.initial_method()
    learnt = sum(int(one.nbytes) for one in method.parameters() if one.requires_grad)
    return sum(int(one.nbytes) for one in method.state_dict().values()) + learnt * _STATES[config.optim.name]
