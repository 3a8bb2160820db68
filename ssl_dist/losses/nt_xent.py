"""NT-Xent, SimCLR's contrastive loss, over the global batch: exact gradients, and no matrix of size B x B in memory.

N local images, B global images, D dimensions of an embedding, T rows of a tile. Rows alternate between the two views of
an image, so the positive of row r is row r XOR 1 on every rank.
"""

from __future__ import annotations

from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from ssl_dist.collectives import Group, RowCounts
from ssl_dist.errors import ConfigError
from ssl_dist.losses import nt_xent_tiles

# Triton's kernels have run in its interpreter, but on no GPU yet: until tests/gpu has passed on one, only that and the
# benchmark switch them on.
kernels_are_on = False


def nt_xent(
    z_a: Tensor, z_b: Tensor, *, temperature: float | Tensor, similarity: str = "cosine", group: Group = None
) -> Tensor:
    """Compute the normalised temperature-scaled cross entropy, the mean over all 2B rows.

        s_ij = sim(z_i, z_j) / t        loss = 1/2B sum_i [ log sum_{j != i} exp(s_ij) - s_i,pos(i) ]

    All rows of other images in the global batch are negatives, even if an image occurs twice. The forward pass gathers
    the row counts, the embeddings and the rows' log-sum-exps; the backward pass needs no collective.

    Args:
        z_a, z_b: ``[N, D]``, the two views' embeddings of this rank's images; N may differ between ranks. float32 or
            float64; bfloat16 and float16 are computed in float32, under autocast too.
        temperature: t > 0. A scalar tensor can be learnt: a rank gets the gradient of its own rows, which is summed
            over ranks like that of any parameter.
        similarity: "cosine", or "dot" for the plain dot product.
        group: the ranks; None: the default group, or this process alone if there is no group.

    Returns:
        The loss of the global batch, a scalar, equal on all ranks. Its gradient for the local rows is exact, so
        parameter gradients have to be *summed* over ranks.

    Raises:
        ConfigError: temperature <= 0, unknown similarity, fewer than 2 images in the global batch, shapes that differ.

    Source: SimCLR, arXiv 2002.05709, equation 1 (google-research/simclr adds the two views' means: twice this value).
    """
    if z_a.device.type not in nt_xent_tiles.TILE_BYTES:
        raise ConfigError(f"device {z_a.device.type}: NT-Xent runs on {' and '.join(nt_xent_tiles.TILE_BYTES)}")
    if not temperature > 0:
        raise ConfigError(f"temperature {float(temperature):g}: it must be greater than 0")
    if similarity not in ("cosine", "dot"):
        raise ConfigError(f"similarity {similarity!r}: it is 'cosine' or 'dot'")
    if z_a.shape != z_b.shape or z_a.dim() != 2:
        raise ConfigError(f"the two views have shapes {tuple(z_a.shape)} and {tuple(z_b.shape)}: both must be [N, D]")
    with torch.autocast(z_a.device.type, enabled=False):
        z = torch.stack([z_a, z_b], dim=1)  # [N, 2, D]
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        if isinstance(temperature, Tensor):
            temperature = temperature.to(z.dtype)
            y = (_Rescaled.apply(z, 1.0) if similarity == "cosine" else z) / temperature**0.5
        else:
            y = _Rescaled.apply(z, temperature**-0.5) if similarity == "cosine" else z / temperature**0.5
        del z  # at 2N = 1,048,576 each copy of the rows is 512 MiB
        loss: Tensor = _NTXent.apply(y, group)  # s_ij = y_i . y_j
    return loss


class _Rescaled(torch.autograd.Function):
    """Rows of a given length: y = length * z / |z|, in fewer copies of the rows than ``normalize`` and a division.

    dL/dz = length / |z| (dL/dy - y (y . dL/dy) / length^2); rows shorter than 1e-12 are divided by that.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, z: Tensor, length: float) -> Tensor:
        ratio = z.norm(dim=-1, keepdim=True).clamp_min_(1e-12).div_(length)
        y: Tensor = z / ratio
        ctx.save_for_backward(y, ratio)
        ctx.length = length  # type: ignore[attr-defined]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        y, ratio = ctx.saved_tensors  # type: ignore[attr-defined]
        along = (y * grad).sum(-1, keepdim=True).div_(ctx.length**2)  # type: ignore[attr-defined]
        return torch.addcmul(grad, along, y, value=-1).div_(ratio), None


class _NTXent(torch.autograd.Function):
    """NT-Xent of y = z / sqrt(t), where p(i) is the positive of i and sums over j run over negatives only:

        a_i = log sum_j exp(s_ij) - s_i,p(i)        loss = 1/2B sum_i log(1 + exp(a_i))        lse_i = s_i,p(i) + loss_i
        dL/dy_i = 1/2B [ sum_j (exp(s_ij - lse_i) + exp(s_ij - lse_j)) y_j - (sigmoid(a_i) + sigmoid(a_p(i))) y_p(i) ]

    No large terms cancel where views agree. S is symmetric, so row i's part in the loss of row j needs only lse_j,
    which follows from the a_j that the forward pass gathers.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, y: Tensor, group: Group) -> Tensor:
        row_counts = RowCounts.of(y, group)
        pairs = row_counts.gather(y)  # [B, 2, D]
        if len(pairs) < 2:
            raise ConfigError(f"NT-Xent needs 2 images or more in the global batch, it has {len(pairs)}")
        y_all = pairs.flatten(0, 1)  # [2B, D]
        mine = range(2 * row_counts.mine.start, 2 * row_counts.mine.stop)
        positive = (pairs[:, 0] * pairs[:, 1]).sum(1).repeat_interleave(2)  # [2B]
        lse, bound = _sums(y_all).log_sum_exp(y_all, mine)
        margin = lse - positive[mine.start : mine.stop]  # [2N]
        margin = row_counts.gather(margin.view(-1, 2)).flatten()  # [2B]
        losses = torch.logaddexp(margin, torch.zeros_like(margin))
        ctx.save_for_backward(y_all, margin, positive + losses)
        ctx.mine, ctx.bound = mine, bound  # type: ignore[attr-defined]
        return losses.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_loss: Tensor) -> tuple[Tensor, None]:
        y, margin, lse = ctx.saved_tensors  # type: ignore[attr-defined]
        mine: range = ctx.mine  # type: ignore[attr-defined]
        grad = _sums(y).gradient(y, mine, lse, ctx.bound)  # type: ignore[attr-defined]  # [2N, D]
        local = slice(mine.start, mine.stop)
        pull = margin[local].sigmoid().view(-1, 2).sum(1).view(-1, 1, 1)  # [N, 1, 1]
        positive = y[local].view(-1, 2, y.shape[1]).flip(1)  # [N, 2, D]
        grad_y = grad.view(-1, 2, y.shape[1]).addcmul_(pull, positive, value=-1)
        return grad_y.mul_(grad_loss / len(y)), None


def _sums(y: Tensor) -> ModuleType:
    """Return the module that computes the sums over j: Triton's kernels where they are on, otherwise torch tiles.

    The kernels take float32 on CUDA, up to 256 dimensions, and need the on-chip memory of an A100 or later (160 KiB).
    """
    takes = y.device.type == "cuda" and y.dtype == torch.float32 and y.shape[1] <= 256 and torch.version.hip is None
    if kernels_are_on and takes:
        on_chip = torch.cuda.get_device_properties(y.device).shared_memory_per_block_optin  # type: ignore[attr-defined]
        if on_chip >= 160 << 10 and find_spec("triton"):
            from ssl_dist.losses import nt_xent_triton

            return nt_xent_triton
    return nt_xent_tiles
