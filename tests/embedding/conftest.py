"""Shared by tests of embeddings: a trained run, its features, parts of few images, an executor that takes notes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
import torch
from pyarrow import parquet
from torch import Tensor

import ssl_dist
from ssl_dist.embedding import making, parts
from ssl_dist.embedding.parts import Done, embeddings
from ssl_dist.embedding.tasks import Count, Opened, Task
from tests.helpers import save, small_config, train


@pytest.fixture(scope="session")
def run(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a run of two steps of SimCLR; a forward pass of its encoder has four images."""
    run = tmp_path_factory.mktemp("runs") / "simclr"
    config = small_config(small_store)
    save(train(0, 1, config, 0, 2).state, run, 2, config)
    return run


@pytest.fixture(scope="session")
def features(run: Path, small_store: Path) -> Tensor:
    """Return the features of the small store's images, as a person's own code gets them."""
    return ssl_dist.load_encoder(run).embed(small_store)


def features_of(out: Path) -> Tensor:
    """Return the features in a file."""
    return torch.from_numpy(embeddings(parquet.read_table(out)))


def watched(ran: list[str]) -> Callable[[Iterator[Task], Opened, Count], Generator[Done, None, None]]:
    """Return an executor that notes the files that it writes anew."""

    def execute(tasks: Iterator[Task], opened: Opened, count: Count) -> Generator[Done, None, None]:
        for task in tasks:
            if (done := task.done()) is None:
                ran.append(task.path.name)
                done = task.run(opened, count)
            yield done

    return execute


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut 51 images into seven parts of eight images, and these into four blocks; the last ones are smaller."""
    monkeypatch.setattr(making, "PART_ROWS", 10)
    monkeypatch.setattr(parts, "BLOCK_PARTS", 2)
