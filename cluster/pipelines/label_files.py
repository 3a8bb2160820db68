"""Files of drawn labels: arrays that runs read, and tables that people read."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ssl_dist.errors import ConfigError
from ssl_dist.files import replacing
from ssl_dist.store import ImageStore


def save_labels(labels: np.ndarray, file: Path) -> None:
    """Write a label file, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as aside, aside.open("wb") as content:
        np.save(content, labels)


def write_labels(files: Mapping[Path, np.ndarray]) -> None:
    """Write label files, unless the very same were written before.

    Raises:
        ConfigError: others were.
    """
    for file, labels in files.items():
        if file.exists() and not np.array_equal(np.load(file), labels):
            raise ConfigError(
                f"{file} has other labels than these stores and options give: use those that it began with, or choose"
                " another --run-dir"
            )
    for file, labels in files.items():
        if not file.exists():
            save_labels(labels, file)


def listing(train: ImageStore, learnt: np.ndarray, held: np.ndarray) -> str:
    """Return drawn images as a table: id, key, class, and whether the label is learned from or validated on.

    Args:
        learnt, held: sample ids, sorted.
    """
    text, is_held = io.StringIO(), set(held.tolist())
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("id", "key", "label", "part"))
    ids = np.union1d(learnt, held)
    for number, key in zip(ids.tolist(), train.keys_at(ids), strict=True):
        part = "validation" if number in is_held else "train"
        rows.writerow((number, key, train.class_names[train.labels[number]], part))
    return text.getvalue()
