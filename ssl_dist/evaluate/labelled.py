"""Labelled stores of an evaluation, which must fit each other and the run. They are checked without torch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssl_dist.data import open_store
from ssl_dist.errors import StoreError
from ssl_dist.evaluate.label_draw import held_out
from ssl_dist.settings import DataConfig
from ssl_dist.store import ImageStore

log = logging.getLogger(__name__)


class Labelled(NamedTuple):
    """The labelled images of a store.

    Attributes:
        ids: int64 ``[n]``, their sample ids.
        labels: int64 ``[n]``, numbers of the training store's classes.
        part: of the store, for messages; "" is the whole.
    """

    store: ImageStore
    ids: np.ndarray
    labels: np.ndarray
    part: str = ""

    @classmethod
    def of(cls, store: ImageStore, labels: np.ndarray) -> Labelled:
        """Take the images that have a label, 0 or more of int ``[len(store)]``."""
        ids = np.flatnonzero(labels >= 0)
        return cls(store, ids, labels[ids].astype(np.int64))

    @property
    def what(self) -> str:
        """The images in words."""
        return f"the {len(self.ids):,} labelled images of {self.part}{self.store.name}"

    def at(self, rows: np.ndarray) -> Labelled:
        """Return some of the images, by their rows here."""
        return self._replace(ids=self.ids[rows], labels=self.labels[rows])


def open_pair(
    train: str | Path, test: str | Path, data: DataConfig, image_shape: tuple[int, int, int]
) -> tuple[Labelled, Labelled]:
    """Open the labelled stores that an evaluation learns from and measures on.

    Raises:
        StoreError: no labels or of one class only, different classes (see ``labels_by_name``), or images of another
            size than ``image_shape``, the run's.
    """
    train_store = open_labelled(train, data, image_shape)
    test_store = open_labelled(test, data, train_store.image_shape)
    warn_of_same_images(train_store, test_store)
    test_labels = labels_by_name(train_store, test_store)
    known = Labelled.of(train_store, train_store.labels)
    _expect_classes(known)
    return known, Labelled.of(test_store, test_labels)


def split_in_two(
    path: str | Path, data: DataConfig, image_shape: tuple[int, int, int], share: float, seed: int
) -> tuple[Labelled, Labelled]:
    """Open a labelled store, and hold a share of each class out to measure on.

    Returns:
        (images to learn from, images to measure on).

    Raises:
        StoreError: no labels or of one class only, images of another size than ``image_shape``, or one image a class.
    """
    store = open_labelled(path, data, image_shape)
    labelled = Labelled.of(store, store.labels)
    _expect_classes(labelled)
    out = held_out(labelled.labels, share, seed)
    if not out.any():
        raise StoreError(f"{store.name} has one labelled image of each class, so none can be held out to measure on")
    known, asked = labelled.at(np.flatnonzero(~out)), labelled.at(np.flatnonzero(out))
    return known._replace(part="the rest of "), asked._replace(part="the held-out part of ")


def _expect_classes(known: Labelled) -> None:
    if len(np.unique(known.labels)) < 2:
        raise StoreError(f"{known.store.name} has labelled images of one class only, so there is nothing to tell apart")


def open_images(path: str | Path, data: DataConfig, image_shape: tuple[int, int, int] | None = None) -> ImageStore:
    """Open a store to evaluate a run on, with labels or without; ``data`` is the run's section and names the cache.

    Raises:
        StoreError: the store has images of another size than ``image_shape``.
    """
    store = open_store(data, str(path))
    if image_shape is not None and store.image_shape != image_shape:
        raise StoreError(
            f"{store.name} holds {store.image_shape} images where {image_shape} is needed: build it"
            f" with --size-px {image_shape[0]}"
        )
    return store


def open_labelled(path: str | Path, data: DataConfig, image_shape: tuple[int, int, int] | None = None) -> ImageStore:
    """Open a labelled store, as ``open_images`` does.

    Raises:
        StoreError: the store has no labels, or images of another size than ``image_shape``.
    """
    store = open_images(path, data, image_shape)
    if not store.class_names or not (store.labels >= 0).any():
        raise StoreError(
            f"{store.name} has no labels: build it from class folders, or label it with `ssl-dist store label`"
        )
    return store


def warn_of_same_images(train: ImageStore, test: ImageStore) -> None:
    """Warn where both stores have shards of the same content: their test images are their own nearest neighbours."""
    train_shards, test_shards = ({shard.xxh3 for shard in store.manifest.shards} for store in (train, test))
    if train_shards & test_shards:
        log.warning(
            "%s and %s have images in common, which a classifier has seen: the accuracy says nothing about new images",
            *(train.name, test.name),
        )


def labels_by_name(train: ImageStore, test: ImageStore) -> np.ndarray:
    """Return the test store's labels as numbers of the training store's classes, which are matched by name.

    An image of a class that the training store lacks gets a number that no classifier answers. So it counts as wrong,
    and an accuracy is of the whole test store. A warning says how many such images there are.

    Returns:
        int32 ``[n]``, -1 for an image without a label.

    Raises:
        StoreError: each of the stores has classes that the other lacks.
    """
    missing = [name for name in test.class_names if name not in train.class_names]
    unused = [name for name in train.class_names if name not in test.class_names]
    if missing and unused:
        raise StoreError(
            f"{train.name} and {test.name} have different classes: only the first has {_some(unused)}, only the second"
            f" has {_some(missing)}: name the class folders of both alike, or leave out the classes that one lacks"
        )
    numbers = {name: number for number, name in enumerate([*train.class_names, *missing])}
    table = np.array([*(numbers[name] for name in test.class_names), -1], dtype=np.int32)
    labels: np.ndarray = table[test.labels]  # -1 takes the last entry
    if count := int((labels >= len(train.class_names)).sum()):
        log.warning(
            "%s has no class %s, so %d images of %s count as wrong", train.name, _some(missing), count, test.name
        )
    return labels


def _some(names: Sequence[str]) -> str:
    """Quote at most three names, and say how many others there are."""
    shown = ", ".join(map(repr, names[:3]))
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
