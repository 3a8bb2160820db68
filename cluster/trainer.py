"""The trainer that runs a function on every worker, under Ray Train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.connect import worker_resources
from ssl_dist.machine import KEEP_FREED_MEMORY
from ssl_dist.settings import ClusterConfig


def torch_trainer(
    function: Callable[[dict[str, Any]], Any], settings: dict[str, Any], cluster: ClusterConfig, directory: Path
) -> Any:
    """Make a TorchTrainer that calls ``function(settings)`` on every worker.

    Args:
        directory: the run's directory, into which Ray writes its own files as well.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    from cluster.backend import PreemptibleTorchConfig

    class Trainer(TorchTrainer):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            """Leave out callbacks that start a process for nothing.

            One manages Ray's data sets, of which there are none; one frees the room of a controller that died, which a
            Ray that ends with this process does itself, and for which each start and each end of a run would wait.
            """
            needless = {"DatasetsCallback", *({"PlacementGroupCleanerCallback"} if _owns_ray() else ())}
            callbacks = super()._create_default_callbacks()
            return [callback for callback in callbacks if type(callback).__name__ not in needless]

    workers, retries = cluster.workers, ray.train.FailureConfig(max_failures=cluster.max_failures)
    return Trainer(
        function,
        train_loop_config=settings,
        torch_config=PreemptibleTorchConfig(backend="nccl" if cluster.gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.max if workers.min == workers.max else (workers.min, workers.max),
            use_gpu=cluster.gpu,
            resources_per_worker=worker_resources(cluster),
            elastic_resize_monitor_interval_s=cluster.resize_every_s,
        ),
        run_config=ray.train.RunConfig(
            name=directory.name,
            storage_path=str(directory.parent),
            failure_config=retries,
            worker_runtime_env={"env_vars": KEEP_FREED_MEMORY},
        ),
    )


def _owns_ray() -> bool:
    """Return whether this process started the Ray that it uses, which then ends with it."""
    import ray

    node = ray._private.worker._global_node
    return node is not None and node.is_head()
