"""Runs of the networks that the tests export, whose running statistics are not those of the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.export.cases import CLASSIFIERS, NETWORKS, write_run


@pytest.fixture(scope="session")
def runs(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write a run of each network by SimCLR, and supervised runs."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        name: write_run(folder / f"run-{number}", small_store, number, **backbone)
        for number, (name, backbone) in enumerate((NETWORKS | CLASSIFIERS).items())
    }


@pytest.fixture(scope="session")
def more_runs(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write runs of larger networks, and of one that is made for images of one size."""
    folder = tmp_path_factory.mktemp("more-runs")
    networks: dict[str, dict[str, Any]] = {
        "resnet50": {"name": "resnet50"},
        "resnet18 classifies": {"name": "resnet18", "hidden": None},
        "vit_b_32": {"name": "vit_b_32", "normalisation": "imagenet"},
        "vit_b_32 classifies": {"name": "vit_b_32", "hidden": None},
    }
    return {
        name: write_run(folder / f"run-{number}", small_store, number, **network)
        for number, (name, network) in enumerate(networks.items())
    }
