"""Times of NT-Xent's two kernels by configuration, and of its torch tiles by their size, at 2N = 131,072."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.cuda.measure import elapsed, mark, say, wait_for
from ssl_dist.losses import nt_xent_tiles

ROWS = 1 << 17
Numbers = tuple[int, ...]
# rows and columns of a tile, warps, stages
FORWARD: list[Numbers] = [
    (128, 64, 8, 2),
    (128, 64, 8, 3),
    (128, 128, 8, 2),
    (64, 64, 4, 2),
    (64, 64, 4, 3),
    (64, 32, 4, 2),
    (64, 32, 4, 3),
    (128, 32, 4, 2),
    (64, 128, 4, 2),
    (128, 64, 4, 2),
]
BACKWARD: list[Numbers] = [
    (128, 64, 8, 2),
    (128, 64, 8, 3),
    (128, 32, 8, 3),
    (64, 64, 4, 2),
    (64, 32, 4, 2),
    (64, 32, 4, 3),
    (64, 128, 8, 2),
    (128, 128, 8, 2),
]


def tune(device: torch.device, dim: int, temperature: float) -> None:
    """Time each configuration and print JSON lines."""
    from ssl_dist.losses import nt_xent_triton as kernels

    generator = torch.Generator(device).manual_seed(0)
    y = normalize(torch.randn(ROWS, dim, generator=generator, device=device), dim=1) / temperature**0.5
    rows = range(ROWS)
    lse, largest = kernels.log_sum_exp(y, rows)
    calls: dict[str, tuple[int, list[Numbers], Callable[[Numbers], object]]] = {
        "forward": (2, FORWARD, lambda config: kernels.log_sum_exp(y, rows, kernels.Config(*config))),
        "backward": (4, BACKWARD, lambda config: kernels.gradient(y, rows, lse, largest, kernels.Config(*config))),
        "tiles, bytes": (6, [(1 << power,) for power in (22, 24, 26, 28)], lambda size: _by_tiles(y, *size)),
    }
    for name, (flops, configs, call) in calls.items():
        for config in configs:
            about = {"part": "nt-xent, tuning", "kernel": name, "config": config}
            try:
                ms = _milliseconds(lambda call=call, config=config: call(config), device)  # type: ignore[misc]
                say(device, {**about, "ms": ms, "tflops": flops * ROWS**2 * dim / ms * 1e-9})
            except Exception as error:  # too large for this device's chip, by whatever error Triton says so
                say(device, {**about, "failed": f"{type(error).__name__}: {error}"[:200]})


def _by_tiles(y: Tensor, size: int) -> None:
    with mock.patch.dict(nt_xent_tiles.TILE_BYTES, {y.device.type: size}):
        sums, shift = nt_xent_tiles.log_sum_exp(y, range(len(y)))
        nt_xent_tiles.gradient(y, range(len(y)), sums, shift)


def _milliseconds(call: Callable[[], object], device: torch.device) -> float:
    times = []
    for number in range(4):
        began = mark(device)
        call()
        ended = mark(device)
        wait_for(device)
        if number:  # the first compiles
            times.append(elapsed(began, ended))
    return statistics.median(times)
