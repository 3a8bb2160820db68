"""NT-Xent in float64: the loss, and the gradient of 256 rows, to hold what was computed in float32 against.

Above 262,144 rows float64 takes too long for each column's log-sum-exp: the loss is not known there, and the gradient's
columns take theirs from our own forward pass, whose error at the 256 rows is given.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.cuda.measure import Record
from ssl_dist.losses.nt_xent import _sums

IMAGES = 128  # two rows each
MOST_ROWS = 1 << 18
CHUNK_BYTES = 1 << 30


@dataclass(frozen=True)
class Exact:
    """What is right for a batch: ``loss`` if it is known, ``grads`` [2, images, D], ``images`` are their numbers."""

    loss: float | None
    grads: Tensor
    images: Tensor
    lse_error: float | None

    @classmethod
    def of(cls, z_a: Tensor, z_b: Tensor, temperature: float) -> Exact:
        """Compute it from the views ``[N, D]``, cosine similarity."""
        z = torch.stack([z_a.detach(), z_b.detach()], dim=1)  # [N, 2, D]
        y = (normalize(z.double(), dim=2) / temperature**0.5).flatten(0, 1)  # [2N, D]
        images = torch.linspace(0, len(z) - 1, min(IMAGES, len(z)), device=z.device, dtype=torch.float64).long()
        rows = torch.stack([2 * images, 2 * images + 1], dim=1).flatten()
        lse_error, loss = None, None
        if len(y) <= MOST_ROWS:
            lse = _log_sum_exp(y, torch.arange(len(y), device=y.device))
            loss = float((lse - (y * _swapped(y)).sum(1)).mean())
        else:
            lse = _by_us(y.float())
            exact = _log_sum_exp(y, rows)
            lse_error = float((lse[rows] - exact).abs().max())
            lse[rows] = exact
        return cls(loss, _gradient(z[images], y, rows, lse, temperature), images, lse_error)

    def errors(self, loss: float, grads: tuple[Tensor, ...]) -> Record:
        """Return the errors of a loss and its gradients, relative to what is right."""
        sample = torch.stack([grad[self.images] for grad in grads]).double()
        record: Record = {"gradient": float((sample - self.grads).norm() / self.grads.norm())}
        if self.loss is not None:
            record["loss"] = abs(loss - self.loss) / self.loss
        if self.lse_error is not None:
            record["lse_of_ours_at_most"] = self.lse_error
        return record


def _swapped(y: Tensor) -> Tensor:
    """Return each row's positive."""
    return y.view(-1, 2, y.shape[1]).flip(1).flatten(0, 1)


def _log_sum_exp(y: Tensor, rows: Tensor) -> Tensor:
    """Return log sum exp over all other rows."""
    parts = []
    for some in rows.split(max(1, CHUNK_BYTES // (8 * len(y)))):
        logits = y[some] @ y.T
        logits[torch.arange(len(some), device=y.device), some] = -torch.inf
        parts.append(logits.logsumexp(1))
    return torch.cat(parts)


def _by_us(y: Tensor) -> Tensor:
    negatives, _ = _sums(y).log_sum_exp(y, range(len(y)))
    return torch.logaddexp(negatives.double(), (y * _swapped(y)).sum(1).double())


def _gradient(z: Tensor, y: Tensor, rows: Tensor, lse: Tensor, temperature: float) -> Tensor:
    """Return dL/dz of some images, ``[2, images, D]``; ``z`` is theirs, ``[images, 2, D]``."""
    grad = torch.empty(len(rows), y.shape[1], dtype=torch.float64, device=y.device)
    for part in torch.arange(len(rows), device=y.device).split(64):
        some = rows[part]
        logits = y[some] @ y.T
        weight = (logits - lse[some, None]).exp_() + logits.sub_(lse).exp_()
        weight[torch.arange(len(some), device=y.device), some] = 0
        grad[part] = weight @ y - 2 * y[some ^ 1]
    views = z.double().requires_grad_()
    scaled = (normalize(views, dim=2) / temperature**0.5).flatten(0, 1)
    [found] = torch.autograd.grad(scaled, views, grad / len(y))
    return found.transpose(0, 1)
