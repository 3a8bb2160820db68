"""Tests of NT-Xent's Triton kernels against float64: on CUDA where there is one, otherwise in Triton's interpreter.

They run in a process of their own, because the interpreter has to be chosen before Triton is imported.
"""

from __future__ import annotations

import importlib.metadata
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_dist.losses import nt_xent, nt_xent_tiles
from tests.helpers import grid
from tests.losses.test_nt_xent import embeddings, reference, relative

pytest.importorskip("triton", reason="Triton is not installed; it comes with CUDA builds of torch")
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
WORSE = 10 if CUDA else 3  # times the error of float32 tiles on a CPU: tensor cores truncate sums where a CPU rounds
Run = Callable[..., Any]


def _version(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in importlib.metadata.version(package).split(".")[:2])


if not CUDA and _version("triton") < (3, 8) and _version("numpy") >= (2, 5):
    pytest.skip("the interpreter of Triton before 3.8 needs NumPy before 2.5", allow_module_level=True)


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Return a function that calls another in the process of the kernels."""
    with (
        mock.patch.dict(os.environ, {} if CUDA else {"TRITON_INTERPRET": "1"}),
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


def _by_kernels(z_a: Tensor, z_b: Tensor, temperature: float, similarity: str) -> tuple[float, Tensor]:
    """Return the loss by the kernels and its gradient, [2, N, D]."""
    from ssl_dist.losses import nt_xent_triton

    with mock.patch("ssl_dist.losses.nt_xent._sums", return_value=nt_xent_triton):
        return _loss_and_gradient(z_a.to(DEVICE), z_b.to(DEVICE), temperature, similarity)


def _loss_and_gradient(z_a: Tensor, z_b: Tensor, temperature: float, similarity: str) -> tuple[float, Tensor]:
    views = [z.detach().requires_grad_() for z in (z_a, z_b)]
    loss = nt_xent(*views, temperature=temperature, similarity=similarity)
    return loss.item(), torch.stack(torch.autograd.grad(3 * loss, views)).cpu()  # 3: the incoming gradient counts


@pytest.mark.parametrize(
    ("shape", "kind"),
    grid([(3, 16), (75, 100), (75, 256), (150, 128)], [(0.01, "cosine"), (0.1, "cosine"), (0.2, "dot")]),
)
def test_kernels_are_as_exact_as_float32_tiles(run: Run, shape: tuple[int, int], kind: tuple[float, str]) -> None:
    (n, dim), (temperature, similarity) = shape, kind
    exact = embeddings(n, dim)
    theirs = 3 * reference(*exact, temperature, similarity)
    expected = torch.stack(torch.autograd.grad(theirs, exact))
    single = [z.detach().float() for z in exact]
    loss, grad = run(_by_kernels, *single, temperature, similarity)
    tiles_loss, tiles_grad = _loss_and_gradient(*single, temperature, similarity)
    unit = torch.finfo(torch.float32).eps
    error, tiles_error = (abs(3 * found - theirs.item()) for found in (loss, tiles_loss))
    assert error <= WORSE * (tiles_error + 10 * unit * theirs.item())  # a single number may be right by chance
    assert relative(grad.double(), expected) <= WORSE * (relative(tiles_grad.double(), expected) + 2 * unit)


def _of_a_part(y: Tensor, mine: range, lse: Tensor) -> tuple[Tensor, Tensor]:
    from ssl_dist.losses import nt_xent_triton

    y, lse = y.to(DEVICE), lse.to(DEVICE)
    sums, largest = nt_xent_triton.log_sum_exp(y, mine)
    return sums.cpu(), nt_xent_triton.gradient(y, mine, lse, largest).cpu()


@pytest.mark.parametrize("mine", [range(22, 220), range(0, 2), range(298, 300), range(8, 8)])
def test_a_rank_computes_its_rows(run: Run, mine: range) -> None:
    y = torch.stack(embeddings(150, 32), dim=1).detach().flatten(0, 1) / 3
    lse = (y @ y.T).fill_diagonal_(-torch.inf).logsumexp(1)
    sums, shift = nt_xent_tiles.log_sum_exp(y, mine)
    expected = nt_xent_tiles.gradient(y, mine, lse, shift)
    found_sums, found = run(_of_a_part, y.float(), mine, lse.float())
    assert found.shape == (len(mine), 32)
    bound = WORSE * 3e-6  # logits of up to 20 in float32
    torch.testing.assert_close(found_sums.double(), sums, rtol=bound, atol=bound)
    torch.testing.assert_close(found.double(), expected, rtol=bound, atol=bound)


def test_equal_calls_give_equal_bits(run: Run) -> None:
    views = [z.detach().float() for z in embeddings(200, 128)]
    (loss, grad), (again, grad_again) = (run(_by_kernels, *views, 0.1, "cosine") for _ in range(2))
    assert loss == again
    assert torch.equal(grad, grad_again)


def test_collapsed_and_tiny_embeddings_stay_finite_and_broken_ones_are_seen(run: Run) -> None:
    for fill in (0.0, 1.0, 1e-30):
        loss, grad = run(_by_kernels, *torch.full((2, 5, 8), fill), 0.1, "dot")
        assert loss == pytest.approx(math.log(9), abs=WORSE * 3e-6)  # logits of 80 in float32
        assert np.isfinite(grad.numpy()).all()
    for fault in (math.nan, math.inf):
        views = torch.ones(2, 5, 8)
        views[0, 3, 2] = fault
        assert math.isnan(run(_by_kernels, *views, 0.1, "dot")[0])
