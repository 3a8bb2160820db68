"""Ray Train's torch backend, extended so that preempted workers end their step first (see ``preemption.py``).

The training function runs in a thread of the worker, and only a process' main thread receives signals. The functions
that a backend executes at the start and at the end run in the main thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.torch import TorchConfig

from cluster.preemption import handle_sigterm, is_training, preempt
from ssl_dist.training.launchers import forget_launcher

_HEALTHY_ANSWER_S = 10  # a worker that takes longer is not waited for
_PREEMPT_S = 330  # enough for a step and a checkpoint

_TorchBackend: Any = TorchConfig().backend_cls


class _Backend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Make the process group, with Ray's ranks and no others."""
        worker_group.execute(forget_launcher)
        super().on_start(worker_group, backend_config)

    def on_training_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        super().on_training_start(worker_group, backend_config)
        worker_group.execute(handle_sigterm)

    def on_shutdown(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Let workers finish their step when the group is resized; a group in which a worker failed ends at once."""
        with contextlib.suppress(ray.exceptions.RayError):
            if all(_call_on_workers(worker_group, is_training, _HEALTHY_ANSWER_S)):
                _call_on_workers(worker_group, preempt, _PREEMPT_S)
        super().on_shutdown(worker_group, backend_config)


def _call_on_workers(worker_group: Any, function: Callable[[], Any], timeout_s: float) -> list[Any]:
    answers: list[Any] = ray.get(worker_group.execute_async(function), timeout=timeout_s)
    return answers


@dataclass
class PreemptibleTorchConfig(TorchConfig):  # type: ignore[misc]
    """Ray's TorchConfig with this module's backend."""

    @property
    def backend_cls(self) -> Any:
        return _Backend
