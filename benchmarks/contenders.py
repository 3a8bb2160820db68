"""NT-Xent as other libraries compute it, and ours; each function takes two [N, D] tensors and a temperature."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from ssl_dist.losses import nt_xent

Loss = Callable[[Tensor, Tensor, float], Tensor]


def ours(z_a: Tensor, z_b: Tensor, temperature: float) -> Tensor:
    return nt_xent(z_a, z_b, temperature=temperature)


def dense(z_a: Tensor, z_b: Tensor, temperature: float) -> Tensor:
    """Compute all logits at once and leave the gradient to autograd, in one process."""
    z = normalize(torch.cat([z_a, z_b]), dim=1)
    logits = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    return cross_entropy(logits, torch.arange(len(z), device=z.device).roll(len(z_a)))


def lightly(z_a: Tensor, z_b: Tensor, temperature: float) -> Tensor:
    """Call lightly's NTXentLoss; it gathers the negatives of all workers, which is not its default."""
    os.environ.setdefault("LIGHTLY_DID_VERSION_CHECK", "True")
    from lightly.loss import NTXentLoss

    loss: Tensor = NTXentLoss(temperature=temperature, gather_distributed=_world_size() > 1)(z_a, z_b)
    return loss


def solo_learn(z_a: Tensor, z_b: Tensor, temperature: float) -> Tensor:
    """Compute the formula of solo-learn's simclr_loss_func, which is typed again here.

    It is -log(positive / (positive + negatives)) of exponentiated similarities; masks of image numbers tell which rows
    are positive and which are negative.

    Source: https://github.com/vturrisi/solo-learn, solo/losses/simclr.py.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    z = normalize(torch.cat([z_a, z_b]), dim=1)
    numbers = (torch.arange(len(z_a)) + rank * len(z_a)).repeat(2)
    z_all = torch.cat(_Gather.apply(z)) if _world_size() > 1 else z
    numbers_all = numbers
    if _world_size() > 1:
        numbers_all = numbers.new_empty(_world_size() * len(numbers))
        dist.all_gather_single(numbers_all, numbers)
    similarity = torch.exp(z @ z_all.T / temperature)
    same = numbers[:, None] == numbers_all[None]
    others = ~same
    own = torch.arange(len(z)) + rank * len(z)
    same[torch.arange(len(z)), own] = False
    positive = (similarity * same).sum(1)
    negative = (similarity * others).sum(1)
    return -torch.log(positive / (positive + negative)).mean()


class _Gather(torch.autograd.Function):
    """Gather forward; backward, sum over ranks and keep the rank's own rows. Both libraries do so."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> tuple[Tensor, ...]:
        parts = [torch.empty_like(z) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, z)
        return tuple(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = torch.stack(grads)
        dist.all_reduce(total)
        return total[dist.get_rank()]


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


LOSSES: dict[str, Loss] = {"ours": ours, "dense autograd": dense, "lightly": lightly, "solo-learn": solo_learn}
