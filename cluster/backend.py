"""Ray Train's torch backend, whose workers end a step before they go (see ``leaving.py``).

The function that trains runs beside a worker's main thread, which alone takes signals. What a backend does at the start
and at the end runs in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.torch import TorchConfig

from cluster.preemption import heed_sigterm, is_training, leave

_ANSWER_S = 10  # of a worker that is well
_LEAVE_S = 330  # with a step and a checkpoint in it

_TorchBackend: Any = TorchConfig().backend_cls


class _Backend(_TorchBackend):  # type: ignore[misc]
    def on_training_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        super().on_training_start(worker_group, backend_config)
        worker_group.execute(heed_sigterm)

    def on_shutdown(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Of a group whose workers all train: it makes room for one of another size. One that has failed is ended."""
        with contextlib.suppress(ray.exceptions.RayError):
            if all(_ask(worker_group, is_training, _ANSWER_S)):
                _ask(worker_group, leave, _LEAVE_S)
        super().on_shutdown(worker_group, backend_config)


def _ask(worker_group: Any, function: Callable[[], Any], timeout_s: float) -> list[Any]:
    answers: list[Any] = ray.get(worker_group.execute_async(function), timeout=timeout_s)
    return answers


@dataclass
class HeedingTorchConfig(TorchConfig):  # type: ignore[misc]
    """TorchConfig with that backend."""

    @property
    def backend_cls(self) -> Any:
        return _Backend
