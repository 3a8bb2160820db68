"""NT-Xent on one GPU beside dense autograd and lightly: time, peak extra memory, rate of matmul, error in float64.

Rates count the flops of the two kernels, (2 + 4) (2N)^2 D, once, whatever number of products makes one of float32;
``least`` counts what is needed at least where S is known to be symmetric, 4 (2N)^2 D.
"""

from __future__ import annotations

import statistics
from typing import Annotated
from unittest import mock

import torch
import typer
from torch import Tensor

from benchmarks import transforms
from benchmarks.contenders import LOSSES, Loss
from benchmarks.cuda.exact import Exact
from benchmarks.cuda.measure import Record, default_device, elapsed, mark, milliseconds, say
from benchmarks.cuda.tuning import tune as tune_kernels

DIM, TEMPERATURE = 128, 0.1
TILES = "ours, torch tiles"
MOST_ROWS = {TILES: 1 << 18, "dense autograd": 1 << 15, "lightly": 1 << 15}  # of time, and of memory


def main(
    rows: Annotated[list[int], typer.Option(help="2N, the rows of the batch.")] = [  # noqa: B006
        1 << 12,
        1 << 14,
        1 << 15,
        1 << 16,
        1 << 18,
        1 << 20,
    ],
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = default_device(),
    calls: Annotated[int, typer.Option(min=1, help="Timed calls at most; large batches get fewer.")] = 20,
    tune: Annotated[bool, typer.Option("--tune", help="Time configurations of the kernels instead.")] = False,
) -> None:
    """Measure each size and print JSON lines."""
    where = torch.device(device)
    if tune:
        tune_kernels(where, DIM, TEMPERATURE)
        return
    rates = _matmul_rates(where)
    say(where, {"part": "nt-xent", "matmul_tflops": rates})
    names = ["ours", "dense autograd", *transforms.installed(["lightly"])]
    if "lightly" not in names:
        say(where, {"part": "nt-xent", "contender": "lightly", "missing": "lightly"})
    losses = {**{name: LOSSES[name] for name in names}, TILES: LOSSES["ours"]}
    for name, loss in losses.items():  # compile and load before the first measurement
        _Call(name, loss, *_embeddings(512, where))
    for count in rows:
        views = _embeddings(count, where)
        exact = Exact.of(*views, TEMPERATURE)
        for name, loss in losses.items():
            about = {"part": "nt-xent", "rows": count, "dim": DIM, "contender": name}
            if count > MOST_ROWS.get(name, count):
                say(where, {**about, "skipped": f"more than {MOST_ROWS[name]} rows"})
                continue
            say(
                where, {**about, **_figures(name, loss, views, exact, min(calls, max(2, (1 << 38) // count**2)), rates)}
            )


def _embeddings(rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    z_a = torch.randn(rows // 2, DIM, generator=generator, device=device)
    z_b = z_a + 0.5 * torch.randn(rows // 2, DIM, generator=generator, device=device)
    return z_a.requires_grad_(), z_b.requires_grad_()


class _Call:
    """One forward and backward pass: milliseconds of each, the value and the gradients."""

    def __init__(self, name: str, loss: Loss, z_a: Tensor, z_b: Tensor) -> None:
        with mock.patch("ssl_dist.losses.nt_xent.kernels_are_on", name != TILES):
            began = mark(z_a.device)
            value = loss(z_a, z_b, TEMPERATURE)
            between = mark(z_a.device)
            self.grads = torch.autograd.grad(value, (z_a, z_b))
            ended = mark(z_a.device)
        self.value = value.item()
        self.forward_ms, self.ms = elapsed(began, between), elapsed(began, ended)


def _figures(name: str, loss: Loss, views: tuple[Tensor, Tensor], exact: Exact, calls: int, rates: Record) -> Record:
    device, rows = views[0].device, 2 * len(views[0])
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    found = _Call(name, loss, *views)
    record: Record = {}
    if device.type == "cuda":
        record["peak_extra_bytes"] = torch.cuda.max_memory_allocated(device) - before
    record["error"] = exact.errors(found.value, found.grads)
    timed = []
    for _ in range(calls):
        del found  # else the gradients of two calls exist at a time
        found = _Call(name, loss, *views)
        timed.append((found.ms, found.forward_ms))
    ms, forward_ms = (statistics.median(times) for times in zip(*timed, strict=True))
    work = rows**2 * DIM / ms * 1e-9  # TFLOP/s of one flop for each product
    record |= {"ms": ms, "forward_ms": forward_ms, "calls": calls, "tflops": 6 * work, "least_tflops": 4 * work}
    return record | {f"share_of_{name}": 6 * work / rate for name, rate in rates.items()}


def _matmul_rates(device: torch.device) -> Record:
    """Return TFLOP/s of square matrix products, and of float32's where three products of float16 make one."""
    side = 8192 if device.type == "cuda" else 128
    before = torch.get_float32_matmul_precision()
    rates = {}
    for name, dtype, precision in (
        ("fp32", torch.float32, "highest"),
        ("tf32", torch.float32, "high"),
        ("bf16", torch.bfloat16, "highest"),
        ("fp16", torch.float16, "highest"),
    ):
        matrix = torch.randn(side, side, device=device).to(dtype)
        torch.set_float32_matmul_precision(precision)
        times = milliseconds(lambda matrix=matrix: matrix @ matrix, device, 0.5)  # type: ignore[misc]
        rates[name] = 2 * side**3 / statistics.median(times) * 1e-9
    torch.set_float32_matmul_precision(before)
    return {**rates, "fp16_thrice": rates["fp16"] / 3}
