"""The images that a run trains on: the store that holds them, what training needs of it, and their labels."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Protocol

import numpy as np
import xxhash

from ssl_dist.config import ResolvedConfig, RunConfig
from ssl_dist.errors import ConfigError, SslDistError
from ssl_dist.settings import DataConfig
from ssl_dist.store import ImageStore
from ssl_dist.uris import without_secrets

LEFT_OUT = -2
"""What ``data.label_file`` has for an image that is not used."""
_LEAST = {LEFT_OUT: "-2 to leave the image out, or ", -1: "or "}


class Images(Protocol):
    """The part of ``ImageStore`` that training uses, so that images in memory can stand in for a store."""

    def __len__(self) -> int: ...

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def shard_rows(self) -> np.ndarray: ...

    def prepare(self, now: Collection[int], soon: Collection[int]) -> None: ...

    def gather(self, ids: np.ndarray) -> np.ndarray: ...

    def intact(self, ids: np.ndarray) -> np.ndarray: ...


def open_store(data: DataConfig, path: str | None = None) -> ImageStore:
    """Open the run's store, or the one at ``path`` with the run's cache.

    Raises:
        StoreError: there is no store.
    """
    damaged = data.damaged if path is None else "refuse"
    return ImageStore(path or data.store, damaged=damaged, cache=data.cache, cache_gb=data.cache_gb)


def read_labels(config: RunConfig, store: Images) -> np.ndarray:
    """Return the labels in ``data.label_file``, or the store's where there is no such file.

    Returns:
        int32 ``[n]``, -1: none, LEFT_OUT: the image is not used.

    Raises:
        ConfigError: the file cannot be read, or does not belong to this store.
    """
    if config.data.label_file is None:
        return store.labels
    return _read_label_file(Path(config.data.label_file), "data.label_file", len(store), LEFT_OUT)


def _read_label_file(file: Path, key: str, num_images: int, least: int) -> np.ndarray:
    """Read the file that the setting ``key`` names, as ``read_labels`` does; refuse numbers below ``least``."""
    try:
        with file.open("rb") as content:
            labels: np.ndarray = np.lib.format.read_array(content)  # one array, and nothing is unpickled
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key} {file} cannot be read ({error}): it is a .npy of whole numbers") from None
    if labels.shape != (num_images,) or labels.dtype.kind not in "iu":
        raise ConfigError(
            f"{key} {file} has {labels.dtype} {labels.shape}: the store has {num_images} images, and each"
            " needs a whole number, -1 for none"
        )
    outside = np.flatnonzero((labels < least) | (labels >= 2**31))
    if len(outside):
        row = outside[0]
        raise ConfigError(
            f"{key} {file} has a label {labels[row]}, of image {row}: it is -1 for none, {_LEAST[least]}0 to"
            f" {2**31 - 1}"
        )
    return labels.astype(np.int32)


def read_visible_labels(config: RunConfig, store: Images) -> np.ndarray:
    """Return the labels that a method or a stratified order may use: a damaged image that is skipped has none.

    Raises:
        ConfigError: there are no labels, or one for which the method has no class.
    """
    labels = read_labels(config, store)
    if config.data.damaged == "skip":
        labels = np.where(store.intact(np.arange(len(store))) | (labels < -1), labels, -1)
    largest = int(labels.max(initial=-1))
    if largest < 0:
        who = f"method {config.method.name}" if config.num_labelled else "data.stratified"
        given = config.data.label_file or without_secrets(config.data.store)
        raise ConfigError(
            f"{who} needs labels, and {given} has none: build the store from class folders, or name a data.label_file"
        )
    classes = getattr(config.method, "num_classes", None)
    if config.num_labelled and len(np.unique(labels[labels >= 0])) == 1:
        raise ConfigError(
            f"method {config.method.name} learns to tell classes apart, and every label is {largest}: it needs images"
            " of two classes or more"
        )
    if classes is not None and largest >= classes:
        raise ConfigError(f"method.num_classes {classes}: there is a label {largest}, so it is {largest + 1} or more")
    return labels


def read_validation_labels(config: RunConfig, store: Images) -> np.ndarray:
    """Return the labels that the method is validated on: those of ``probe.label_file``.

    Returns:
        int32 ``[n]``, -1: none.

    Raises:
        ConfigError: the file cannot be read, does not belong to this store, has no label, one for which the method has
            no class, or one of an image whose label the method learns from.
    """
    file = config.probe.label_file if config.probe else None
    assert file, "its settings name the file"
    labels = _read_label_file(Path(file), "probe.label_file", len(store), -1)
    if (largest := int(labels.max(initial=-1))) < 0:
        raise ConfigError(f"probe.label_file {file} has no label: it names the images to validate on")
    classes = getattr(config.method, "num_classes", None)
    if classes is not None and largest >= classes:
        raise ConfigError(f"probe.label_file {file} has a label {largest}, and method.num_classes is {classes}")
    both = np.flatnonzero((labels >= 0) & (read_visible_labels(config, store) >= 0))
    if len(both):
        raise ConfigError(
            f"probe.label_file {file} has {len(both)} images whose labels the method learns from, first image"
            f" {both[0]}: name those that it learns from in data.label_file, without these"
        )
    return labels


def class_names(config: ResolvedConfig, num_classes: int) -> list[str]:
    """Return the names of the classes that a run has learnt: its store's, or "class 0" and so on.

    They are not known if the store is gone or has other labels now, or if a label in ``data.label_file`` is not the one
    that the store has for the image, as a cluster's number.
    """
    try:
        store = open_store(config.data)
        is_same = config.facts.store_digest in (None, store_digest(store))
        is_same &= config.facts.store_labels_digest in (None, store_labels_digest(config, store))
        labels = read_labels(config, store)
        if len(store.class_names) == num_classes and is_same and ((labels < 0) | (labels == store.labels)).all():
            return list(store.class_names)
    except SslDistError:
        pass
    return [f"class {number}" for number in range(num_classes)]


def label_digest(file: str | None, key: str) -> str | None:
    """Return the digest of the bytes of the label file that the setting ``key`` names; None where there is none.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        return xxhash.xxh3_64_hexdigest(Path(file).read_bytes()) if file else None
    except OSError as error:
        raise ConfigError(f"{key} {file} cannot be read: {error.strerror}") from None


def store_digest(store: ImageStore) -> str:
    """Return a digest of the checksums of all record batches, in their order.

    It is that of the images, labels and keys, wherever the store lies and however the batches are cut into shards.
    """
    checksums = " ".join(f"{batch.rows}:{batch.xxh3}" for shard in store.manifest.shards for batch in shard.batches)
    return xxhash.xxh3_64_hexdigest(checksums.encode())


def store_labels_digest(config: RunConfig, store: ImageStore) -> str | None:
    """Return a digest of the store's labels where the run learns from them, else None.

    Labels can change without the record batches. Those of damaged images that are skipped change with the damage.
    """
    learnt = config.num_labelled or config.data.stratified
    if not learnt or config.data.label_file or config.data.damaged == "skip":
        return None
    return xxhash.xxh3_64_hexdigest(store.labels.tobytes())
