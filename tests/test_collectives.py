"""Tests of sums over ranks: value and gradient equal those of one process with all rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ssl_dist.collectives import RowCounts, World, sum_gradient_over_ranks, sum_over_ranks
from tests import gloo as pools
from tests.gloo import GlooPool

Pools = Callable[[int], GlooPool]
ROWS = torch.randn(11, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.tensor(
    [1.0, 2.0, 0.5]
)


def _moments(x: Tensor) -> Tensor:
    """Compute a loss from sums alone: the determinant of the second moments."""
    return torch.linalg.det(sum_over_ranks(x.T @ x) / sum_over_ranks(x.new_tensor(float(len(x)))))


def _column_softmax(x: Tensor) -> Tensor:
    """Combine a sum over ranks with each rank's own rows, and sum the result again."""
    normaliser = sum_gradient_over_ranks(sum_over_ranks(x.exp().sum(0)).log())
    return sum_over_ranks(((x - normaliser) * x.sin()).sum())


def _standardised(x: Tensor) -> Tensor:
    """Standardise with two sums over ranks, mean and variance, then sum a product of columns."""
    count = sum_over_ranks(x.new_tensor(float(len(x))))
    deviation = x - sum_gradient_over_ranks(sum_over_ranks(x.sum(0)) / count)
    scaled = deviation / sum_gradient_over_ranks(sum_over_ranks(deviation.square().sum(0)) / count).sqrt()
    return (sum_over_ranks(scaled.T @ scaled.exp()) / count).square().sum()


def _value_and_gradient(rank: int, size: int, function: Callable[[Tensor], Tensor]) -> tuple[float, Tensor]:
    mine = World.current().share(len(ROWS))
    x = ROWS[mine.start : mine.stop].clone().requires_grad_()
    loss = function(x)
    return loss.item(), torch.autograd.grad(loss, x)[0]


@pytest.mark.parametrize("function", [_moments, _column_softmax, _standardised])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_value_and_gradient_are_one_processs(gloo: Pools, workers: int, function: Callable[[Tensor], Tensor]) -> None:
    x = ROWS.clone().requires_grad_()
    expected = function(x)
    [gradient] = torch.autograd.grad(expected, x)
    answers = gloo(workers).run(_value_and_gradient, function)
    assert len({loss for loss, _ in answers}) == 1, "the same bits on every rank"
    assert answers[0][0] == pytest.approx(expected.item(), rel=1e-12)
    assert torch.allclose(torch.cat([part for _, part in answers]), gradient, rtol=1e-11, atol=1e-12)


def _count(rank: int, size: int) -> int:
    return RowCounts.of(torch.zeros(rank, 2)).total


def test_rows_of_all_ranks_are_counted(gloo: Pools) -> None:
    assert gloo(3).run(_count) == [3, 3, 3]


def _fails_on_rank_0(rank: int, size: int) -> None:
    if rank == 0:
        raise RuntimeError("on rank 0 alone")
    dist.barrier()


def test_a_rank_that_fails_alone_is_named_and_leaves_nothing_to_the_next_test(
    gloo: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "OTHERS_WAIT_S", 1.0)
    with pytest.raises(pools.WorkerFailed, match="on rank 0 alone"):
        gloo(2).run(_fails_on_rank_0)
    assert gloo(2).run(_rank_and_size) == [(0, 2), (1, 2)]


def _rank_and_size(rank: int, size: int) -> tuple[int, int]:
    return rank, size
