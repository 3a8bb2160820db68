"""NT-Xent of the global batch, with the exact gradient for the local rows and nothing of size B x B.

N local images, B global images, D embedding. Rows alternate between the two views of an image, so the positive of
row r is row r XOR 1 on every rank.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import normalize

from ssl_dist.collectives import gather_rows
from ssl_dist.errors import ConfigError

TILE_BYTES = 32 << 20  # of one tile of logits


def nt_xent(
    z_a: Tensor, z_b: Tensor, *, temperature: float, similarity: str = "cosine", group: dist.ProcessGroup | None = None
) -> Tensor:
    """Normalised temperature-scaled cross entropy, the mean over all 2B rows.

        s_ij = sim(z_i, z_j) / t        loss = 1/2B sum_i [ log sum_{j != i} exp(s_ij) - s_i,pos(i) ]

    Every other row of the global batch is a negative, also one of an equal image. Collectives: one gather of the
    embeddings and one of the row log-sum-exps, none in the backward pass.

    Args:
        z_a, z_b: ``[N, D]``, the two views' embeddings of this rank's images; N may differ between ranks. float32 or
            float64; bfloat16 and float16 are computed in float32.
        temperature: t > 0.
        similarity: "cosine", or "dot" for embeddings taken as they are.
        group: None: the default group, or this process alone where there is none.

    Returns:
        The loss of the global batch, a scalar, the same on every rank. Its gradient at the local rows is exact, so
        parameter gradients are to be *summed* over ranks.

    Raises:
        ConfigError: temperature <= 0, unknown similarity, fewer than 2 images in the global batch, shapes that differ.

    Source: SimCLR, arXiv 2002.05709, equation 1 (google-research/simclr adds the two views' means: twice this value).
    """
    if not temperature > 0:
        raise ConfigError(f"temperature {temperature}: it must be greater than 0")
    if similarity not in ("cosine", "dot"):
        raise ConfigError(f"similarity {similarity!r}: it is 'cosine' or 'dot'")
    if z_a.shape != z_b.shape or z_a.dim() != 2:
        raise ConfigError(f"the two views have shapes {tuple(z_a.shape)} and {tuple(z_b.shape)}: both must be [N, D]")
    z = torch.stack([z_a, z_b], dim=1)  # [N, 2, D]
    if z.dtype in (torch.bfloat16, torch.float16):
        z = z.float()
    if similarity == "cosine":
        z = normalize(z, dim=2)
    loss: Tensor = _NTXent.apply(z, temperature, group)
    return loss


class _NTXent(torch.autograd.Function):
    """dL/dz_i = 1/(t 2B) [ sum_j (exp(s_ij - lse_i) + exp(s_ij - lse_j)) z_j - 2 z_pos(i) ]: S is symmetric, so the
    part of row i in other rows' losses needs only their log-sum-exps, which are gathered with the forward pass."""

    @staticmethod
    def forward(ctx: FunctionCtx, z: Tensor, temperature: float, group: dist.ProcessGroup | None) -> Tensor:
        gathered, first = gather_rows(z, group)  # [B, 2, D]
        if len(gathered) < 2:
            raise ConfigError(f"NT-Xent needs 2 images or more in the global batch, it has {len(gathered)}")
        z_all = gathered.flatten(0, 1)  # [2B, D]
        rows = torch.arange(2 * first, 2 * (first + len(z)), device=z.device)
        lse = torch.cat([_logits(z_all, tile, temperature).logsumexp(1) for tile in _tiles(rows, z_all)])
        lse_all, _ = gather_rows(lse.view(-1, 2), group)
        positive = (gathered[:, 0] * gathered[:, 1]).sum(1) / temperature  # [B]
        ctx.save_for_backward(z_all, lse_all.flatten(), rows)
        ctx.temperature = temperature  # type: ignore[attr-defined]
        return lse_all.mean() - positive.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_loss: Tensor) -> tuple[Tensor, None, None]:
        z_all, lse, rows = ctx.saved_tensors  # type: ignore[attr-defined]
        temperature: float = ctx.temperature  # type: ignore[attr-defined]
        grad = z_all.new_empty(len(rows), z_all.shape[1])
        done = 0
        for tile in _tiles(rows, z_all):
            logits = _logits(z_all, tile, temperature)
            weight = (logits - lse[tile, None]).exp_().add_((logits - lse).exp_())
            torch.matmul(weight, z_all, out=grad[done : done + len(tile)])
            done += len(tile)
        grad.sub_(z_all[rows ^ 1], alpha=2).mul_(grad_loss / (temperature * len(z_all)))
        return grad.view(-1, 2, z_all.shape[1]), None, None


def _tiles(rows: Tensor, z_all: Tensor) -> tuple[Tensor, ...]:
    """Local row numbers cut so that one tile of logits takes TILE_BYTES at most."""
    tiles: tuple[Tensor, ...] = rows.split(max(1, TILE_BYTES // (len(z_all) * z_all.element_size())))
    return tiles


def _logits(z_all: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """s_ij [rows, 2B], -inf where i = j by number: an equal image elsewhere stays a negative."""
    logits = (z_all[rows] @ z_all.T).div_(temperature)
    return logits.scatter_(1, rows[:, None], -torch.inf)
