"""Ray Train's torch backend, whose workers heed SIGTERM (see ``leaving.py``).

The function that trains runs beside a worker's main thread, which alone takes signals. What a backend does at the start
runs in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ray.train.torch import TorchConfig

from cluster.leaving import heed_sigterm

_TorchBackend: Any = TorchConfig().backend_cls


class _Backend(_TorchBackend):  # type: ignore[misc]
    def on_training_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        super().on_training_start(worker_group, backend_config)
        worker_group.execute(heed_sigterm)


@dataclass
class HeedingTorchConfig(TorchConfig):  # type: ignore[misc]
    """TorchConfig with that backend."""

    @property
    def backend_cls(self) -> Any:
        return _Backend
