"""Fixtures of the tests on a GPU; each test is skipped where there is no CUDA device.

With SSL_DIST_TEST_DEVICE=cpu the same tests compare the CPU with itself, which shows whether the tests are right.
"""

from __future__ import annotations

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as engine.deterministic sets it: cuBLAS reads it once

import gc
from collections.abc import Callable, Iterator

import pytest
import torch

from tests.gloo import GlooPool
from tests.gpu.runs import Processes, full_precision

DEVICE = torch.device(os.environ.get("SSL_DIST_TEST_DEVICE", "cuda"))
ON_CPU = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="session", autouse=True)
def device() -> torch.device:
    """Return the device that is tested."""
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return DEVICE


@pytest.fixture(autouse=True)
def _full_precision(device: torch.device) -> Iterator[None]:
    with full_precision():
        yield
    torch.use_deterministic_algorithms(False)
    if device.type == "cuda":
        gc.collect()  # engines refer to themselves
        torch.cuda.empty_cache()


@pytest.fixture(scope="session")
def processes(device: torch.device) -> Iterator[Processes]:
    """Return groups of processes: ``processes(W).run(function, *arguments)``, see ``GlooPool``.

    They stand on the CPU with ``on_cpu``; DeepSpeed serves one kind of device in a process.
    """
    known: dict[tuple[int, str, bool], GlooPool] = {}

    def get(size: int, backend: str = "gloo", *, on_cpu: bool = False) -> GlooPool:
        key = (size, backend, on_cpu)
        if key in known and known[key].broken:
            known.pop(key).kill()
        if key not in known:
            known[key] = GlooPool(size, backend=backend, spawned=True, environment=ON_CPU if on_cpu else {})
        return known[key]

    yield get
    for pool in known.values():
        pool.close()


@pytest.fixture(scope="session")
def in_double(processes: Processes) -> Callable[..., object]:
    """Return a function that runs another in float64 on the CPU, alone: ``in_double(function, *arguments)``."""
    return lambda function, *arguments: processes(1, on_cpu=True).run(function, *arguments)[0]
