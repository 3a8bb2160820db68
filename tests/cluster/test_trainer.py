"""The processes that Ray Train starts beside a run's workers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from cluster.trainer import torch_trainer
from ssl_dist.machine import KEEP_FREED_MEMORY
from ssl_dist.settings import ClusterConfig


@pytest.mark.parametrize(("head", "ends_with_us"), [(None, False), (False, False), (True, True)])
def test_only_a_ray_that_outlives_the_run_has_a_process_that_frees_its_room(
    head: bool | None, ends_with_us: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node: Any = None if head is None else SimpleNamespace(is_head=lambda: head)
    monkeypatch.setattr(ray._private.worker, "_global_node", node)
    trainer = torch_trainer(print, {}, ClusterConfig(), tmp_path / "run")
    names = {type(callback).__name__ for callback in trainer._create_default_callbacks()}
    assert ("PlacementGroupCleanerCallback" in names) == (not ends_with_us)
    assert "DatasetsCallback" not in names
    assert "BackendSetupCallback" in names


def test_workers_keep_the_memory_that_they_free(tmp_path: Path) -> None:
    trainer = torch_trainer(print, {}, ClusterConfig(), tmp_path / "run")
    assert trainer.run_config.worker_runtime_env == {"env_vars": KEEP_FREED_MEMORY}
