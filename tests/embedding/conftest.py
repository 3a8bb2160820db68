"""Fixtures of the tests of embeddings: a trained run, and parts of few images."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssl_dist.embedding import making, parts
from tests.helpers import save, small_config, train


@pytest.fixture(scope="session")
def run(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a run of two steps of SimCLR; a forward pass of its encoder has four images."""
    run = tmp_path_factory.mktemp("runs") / "simclr"
    config = small_config(small_store)
    save(train(0, 1, config, 0, 2).state, run, 2, config)
    return run


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut 51 images into seven parts of eight images, and these into four blocks; the last ones are smaller."""
    monkeypatch.setattr(making, "PART_ROWS", 10)
    monkeypatch.setattr(parts, "BLOCK_PARTS", 2)
