"""Which images a step has, and which of their labels the method may see."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import xxhash

from ssl_dist import order
from ssl_dist.config import RunConfig
from ssl_dist.errors import ConfigError, StoreDamaged
from ssl_dist.sections import DataConfig
from ssl_dist.store import ImageStore

_LABELLED = 1  # names the seed of the labelled images' order
_STAND_IN = 3  # names the seeds of images that are taken in place of damaged ones
_TRIES = 100  # for one that is intact


class Images(Protocol):
    """What is asked of an ``ImageStore`` to train on it."""

    def __len__(self) -> int: ...

    @property
    def labels(self) -> np.ndarray: ...

    def gather(self, ids: np.ndarray) -> np.ndarray: ...

    def intact(self, ids: np.ndarray) -> np.ndarray: ...


class Samples:
    """The order of a run's images, a pure function of the step.

    Attributes:
        count: images of an epoch: the labelled ones where the method needs all labels, else all. With some labels
            (``batch.labelled`` images of a step) it is the others that make an epoch. Where
            ``data.stratified`` draws by label, images without one are left out.

    With ``data.damaged`` "skip" a damaged image has no label, and where no label is asked for another stands in for
    it: which one is a pure function of seed, epoch and image, so that it is the same for any number of workers.
    """

    def __init__(self, config: RunConfig, store: Images) -> None:
        """
        Raises:
            ConfigError: labels are needed that are not there, or for which the method has no classes.
        """
        self._config, self._store = config, store
        self._num_images = self.count = len(store)
        if config.num_labelled or config.data.stratified:
            self._labels = labels_of(config, store)
            if config.data.damaged == "skip":
                self._labels = np.where(store.intact(np.arange(len(store))), self._labels, -1)
            _expect_labels(config, self._labels)
        if config.num_labelled:
            self._rows = np.flatnonzero(self._labels >= 0)
            self.count = len(self._rows) if config.num_labelled == config.batch.size else len(store)
        elif config.data.stratified:
            self.count = int((self._labels >= 0).sum())
        self._groups = order.Groups(config.seed, self._labels) if config.data.stratified else None

    def of(self, step: int, micro_batches: range) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, epochs and labels, each int64 ``[m * len(micro_batches)]``, of some of a step's micro-batches."""
        sizes = self._config.batch
        labelled = self._config.num_labelled * sizes.micro // sizes.size
        first, last = (step * sizes.num_micro + number for number in (micro_batches.start, micro_batches.stop))
        others = sizes.micro - labelled
        ids, epochs = self._any(first * others, last * others)
        if not labelled:
            return ids, epochs, np.full_like(ids, -1)
        seen, seen_epochs = self._labelled(first * labelled, last * labelled)
        hidden = np.full_like(ids, -1)
        pairs = ((seen, ids), (seen_epochs, epochs), (self._labels[seen].astype(np.int64), hidden))
        ids, epochs, labels = (_interleave(a, b, labelled, others, len(micro_batches)) for a, b in pairs)
        return ids, epochs, labels

    def _labelled(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        if self._groups:
            return self._groups.stream(start, stop)
        seed = order.derive_seed(self._config.seed, _LABELLED)
        positions, epochs = order.stream(seed, start, stop, len(self._rows))
        return self._rows[positions], epochs

    def _any(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        if self._groups and not self._config.num_labelled:  # else it is the labelled ones that are stratified
            return self._groups.stream(start, stop)
        ids, epochs = order.stream(self._config.seed, start, stop, self._num_images)
        return (self._stand_ins(ids, epochs) if self._config.data.damaged == "skip" else ids), epochs

    def _stand_ins(self, ids: np.ndarray, epochs: np.ndarray) -> np.ndarray:
        ids, first = ids.copy(), ids
        for tries in range(_TRIES):
            damaged = np.flatnonzero(~self._store.intact(ids))
            if not len(damaged):
                return ids
            seed = order.derive_seed(self._config.seed, _STAND_IN, tries)
            for place in damaged:
                epoch, image = int(epochs[place]), int(first[place])
                ids[place : place + 1] = order.sample_ids(seed, epoch, image, image + 1, self._num_images)
        raise StoreDamaged(f"{self._config.data.store}: next to no image is intact; build the store again")


def _interleave(a: np.ndarray, b: np.ndarray, each_a: int, each_b: int, times: int) -> np.ndarray:
    """``each_a`` of a, ``each_b`` of b, and so on."""
    return np.concatenate([a.reshape(times, each_a), b.reshape(times, each_b)], axis=1).ravel()


def labels_of(config: RunConfig, store: Images) -> np.ndarray:
    """int32 ``[n]``, -1: none: those of ``data.label_file``, or else the store's.

    Raises:
        ConfigError: the file cannot be read, or is not of this store.
    """
    if config.data.label_file is None:
        return store.labels
    file = Path(config.data.label_file)
    try:
        with file.open("rb") as content:
            labels: np.ndarray = np.lib.format.read_array(content)  # one array, and nothing is unpickled
    except (OSError, ValueError) as error:
        raise ConfigError(f"data.label_file {file} cannot be read ({error}): it is a .npy of whole numbers") from None
    if labels.shape != (len(store),) or labels.dtype.kind not in "iu":
        raise ConfigError(
            f"data.label_file {file} has {labels.dtype} {labels.shape}: the store has {len(store)} images, and each"
            " needs a whole number, -1 for none"
        )
    outside = np.flatnonzero((labels < -1) | (labels >= 2**31))
    if len(outside):
        row = outside[0]
        raise ConfigError(
            f"data.label_file {file} has a label {labels[row]}, of image {row}: it is -1 for none, or 0 to {2**31 - 1}"
        )
    return labels.astype(np.int32)


def open_data(config: RunConfig) -> tuple[ImageStore, DataConfig]:
    """The store that a run is on, and what is to be kept of it in the run's config.

    Raises:
        StoreError: there is none.
        ConfigError: labels are needed that are not there.
    """
    store = ImageStore(config.data.store, damaged=config.data.damaged)
    found = {
        "store": str(store.path.absolute()),
        "num_images": len(store),
        "num_samples": Samples(config, store).count,
        "image_shape": store.image_shape,
        "label_digest": _label_digest(config),
    }
    if file := config.data.label_file:
        found["label_file"] = str(Path(file).absolute())
    return store, config.data.model_copy(update=found)


def _label_digest(config: RunConfig) -> str | None:
    """Of the bytes of ``data.label_file``, None where there is none."""
    file = config.data.label_file
    try:
        return xxhash.xxh3_64_hexdigest(Path(file).read_bytes()) if file else None
    except OSError as error:
        raise ConfigError(f"data.label_file {file} cannot be read: {error.strerror}") from None


def _expect_labels(config: RunConfig, labels: np.ndarray) -> None:
    largest = int(labels.max(initial=-1))
    if largest < 0:
        who = f"method {config.method.name}" if config.num_labelled else "data.stratified"
        given = config.data.label_file or config.data.store
        raise ConfigError(
            f"{who} needs labels, and {given} has none: build the store from class folders, or name a data.label_file"
        )
    classes = getattr(config.method, "num_classes", None)
    if classes is not None and largest >= classes:
        raise ConfigError(f"method.num_classes {classes}: there is a label {largest}, so it is {largest + 1} or more")
