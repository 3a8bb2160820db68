"""A run's classes have the names of its store where these are known to be theirs, and else numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssl_dist import store
from ssl_dist.data.images import class_names
from ssl_dist.store import ImageStore
from tests.helpers import resolved_config

NAMES, NUMBERS = ["class0", "class1", "class2"], ["class 0", "class 1", "class 2"]


@pytest.fixture
def mine(image_folder: Path, tmp_path: Path) -> Path:
    store.build(image_folder, tmp_path / "store", workers=1)
    return tmp_path / "store"


def names_of(run_store: Path, change: Any = lambda: None, **settings: Any) -> list[str]:
    """Return the names that a run has after something changed since it began."""
    config = resolved_config(run_store, method={"name": "supervised", "num_classes": 3}, **settings)
    change()
    return class_names(config, 3)


def test_labels_of_the_store_have_its_names(mine: Path) -> None:
    assert names_of(mine) == NAMES


def test_a_label_file_has_them_where_each_of_its_labels_is_the_stores(mine: Path, tmp_path: Path) -> None:
    labels = ImageStore(mine).labels.copy()
    labels[::2] = -1
    np.save(tmp_path / "some.npy", labels)
    assert names_of(mine, data__label_file=str(tmp_path / "some.npy")) == NAMES
    labels[1] = (labels[1] + 1) % 3
    np.save(tmp_path / "clusters.npy", labels)
    assert names_of(mine, data__label_file=str(tmp_path / "clusters.npy")) == NUMBERS
    gone = tmp_path / "gone.npy"
    np.save(gone, labels)
    assert names_of(mine, gone.unlink, data__label_file=str(gone)) == NUMBERS


def test_a_store_that_is_gone_or_another_now_names_nothing(mine: Path, tmp_path: Path, image_folder: Path) -> None:
    def label_anew() -> None:
        (tmp_path / "labels.csv").write_text("key,label\nclass0/000.png,class1\n")
        store.label(mine, tmp_path / "labels.csv")

    assert names_of(mine, label_anew) == NUMBERS
    assert names_of(mine, lambda: mine.rename(tmp_path / "away")) == NUMBERS


def test_more_classes_than_the_store_names_are_numbers(mine: Path) -> None:
    config = resolved_config(mine, method={"name": "supervised", "num_classes": 4})
    assert class_names(config, 4) == [*NUMBERS, "class 3"]
