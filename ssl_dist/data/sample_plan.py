"""Which images a step has, and which of their labels the method may see."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import xxhash

from ssl_dist import hashing
from ssl_dist.config import RunConfig
from ssl_dist.data import permutation
from ssl_dist.data.groups import Groups
from ssl_dist.data.windows import Windows
from ssl_dist.errors import ConfigError, StoreDamaged
from ssl_dist.settings import DataConfig
from ssl_dist.store import ImageStore
from ssl_dist.store.remote.cache import folder_of
from ssl_dist.uris import without_secrets

log = logging.getLogger(__name__)
_LABELLED = 1  # names the seed of the labelled images' order
_STAND_IN = 3  # names the seeds of images that are taken in place of damaged ones
_TRIES = 100  # for one that is intact


class Images(Protocol):
    """What is asked of an ``ImageStore`` to train on it."""

    def __len__(self) -> int: ...

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def shard_rows(self) -> np.ndarray: ...

    def prepare(self, now: Collection[int], soon: Collection[int]) -> None: ...

    def gather(self, ids: np.ndarray) -> np.ndarray: ...

    def intact(self, ids: np.ndarray) -> np.ndarray: ...


class Samples:
    """The order of a run's images, a pure function of the step.

    Attributes:
        count: images of an epoch: the labelled ones where the method needs all labels, else all. With some labels
            (``batch.labelled`` images of a step) it is the others that make an epoch. Where
            ``data.stratified`` draws by label, images without one are left out.

    With ``data.damaged`` "skip" a damaged image has no label, and where no label is asked for another stands in for
    it: which one is a pure function of seed, epoch and image, so that it is the same for any number of workers. With
    ``data.order`` "shards" it is of the same window, if that has an intact one.
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
        self._groups = Groups(config.seed, self._labels) if config.data.stratified else None
        self._windows: Windows | None = None
        self._labelled_windows: Windows | None = None
        self._num_shards = len(store.shard_rows)
        if config.data.order == "shards":
            self._windows = Windows(config.seed, store.shard_rows, config.data.window)
            if config.num_labelled:
                seed, ends = hashing.derive_seed(config.seed, _LABELLED), np.cumsum(store.shard_rows)
                rows = np.diff(np.searchsorted(self._rows, ends), prepend=0)
                self._labelled_windows = Windows(seed, rows, config.data.window)

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

    @property
    def windows(self) -> list[Windows]:
        """Of the streams that a step draws from; none where it draws from all of the store."""
        sizes = ((self._windows, self._config.batch.size > self._config.num_labelled), (self._labelled_windows, True))
        return [windows for windows, drawn in sizes if windows and drawn]

    def shards(self, step: int) -> tuple[Collection[int], Collection[int]]:
        """Numbers of the shards that a step needs on some worker, or may need as its window has them, and of those that
        are needed next. Of a full order all, at any step."""
        if self._windows is None:
            return range(self._num_shards), ()
        labelled = self._config.num_labelled
        pairs = ((self._windows, self._config.batch.size - labelled), (self._labelled_windows, labelled))
        found = [windows.shards(step * count, (step + 1) * count) for windows, count in pairs if windows and count]
        return [one for now, _ in found for one in now], [one for _, soon in found for one in soon]

    def _labelled(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        if self._groups:
            return self._groups.stream(start, stop)
        if self._labelled_windows:
            positions, epochs = self._labelled_windows.stream(start, stop)
            return self._rows[positions], epochs
        seed = hashing.derive_seed(self._config.seed, _LABELLED)
        positions, epochs = permutation.stream(seed, start, stop, len(self._rows))
        return self._rows[positions], epochs

    def _any(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        if self._groups and not self._config.num_labelled:  # else it is the labelled ones that are stratified
            return self._groups.stream(start, stop)
        if self._windows:
            ids, epochs = self._windows.stream(start, stop)
        else:
            ids, epochs = permutation.stream(self._config.seed, start, stop, self._num_images)
        return (self._stand_ins(ids, epochs, start) if self._config.data.damaged == "skip" else ids), epochs

    def _stand_ins(self, ids: np.ndarray, epochs: np.ndarray, start: int) -> np.ndarray:
        """The ids of positions from ``start`` on, with others for those that are damaged."""
        ids, first = ids.copy(), ids
        for tries in range(_TRIES):
            damaged = np.flatnonzero(~self._store.intact(ids))
            if not len(damaged):
                return ids
            seed = hashing.derive_seed(self._config.seed, _STAND_IN, tries)
            for place in damaged.tolist():
                epoch, image = int(epochs[place]), int(first[place])
                other = permutation.sample_ids(seed, epoch, image, image + 1, self._num_images)
                within = self._windows if tries < _TRIES // 2 else None  # perhaps no other image of it is intact
                ids[place] = within.within(start + place, int(other[0])) if within else other[0]
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
    store = open_store(config.data)
    samples = Samples(config, store)
    found = {
        "store": store.location,
        "num_images": len(store),
        "num_samples": samples.count,
        "image_shape": store.image_shape,
        "label_digest": _label_digest(config),
        "shards_digest": None,
    }
    if config.data.order == "shards":
        found["shards_digest"] = xxhash.xxh3_64_hexdigest(store.shard_rows.tobytes())
    if cache := config.data.cache:
        found["cache"] = str(folder_of(cache))
    if file := config.data.label_file:
        found["label_file"] = str(Path(file).absolute())
    if store.cache_bytes is not None:
        _expect_room(config.data, store, samples.windows)
    return store, config.data.model_copy(update=found)


def open_store(data: DataConfig, path: str | None = None) -> ImageStore:
    """The store of these settings, or another, by their cache."""
    damaged = data.damaged if path is None else "refuse"
    return ImageStore(path or data.store, damaged=damaged, cache=data.cache, cache_gb=data.cache_gb)


def _expect_room(data: DataConfig, store: ImageStore, windows: Sequence[Windows]) -> None:
    """Refuse a store of which the cache cannot hold what a step may need.

    Raises:
        ConfigError: it cannot.
    """
    assert store.cache_bytes is not None, "the store is elsewhere"
    sizes = np.array([shard.bytes for shard in store.manifest.shards])
    total, limit = store.manifest.bytes, store.cache_bytes
    if not windows:
        if total > limit:
            raise ConfigError(
                f"data.cache_gb {data.cache_gb:g} is less than the {_gb(total)} GB of {store.name}, and with data.order"
                " full a batch has images of any shard, so most shards would be fetched anew in each step: set"
                f" data.order=shards, or data.cache_gb to {_gb(total)} or more"
            )
        return
    needed = min(total, sum(one.heaviest(sizes) for one in windows))
    if needed > limit:
        raise ConfigError(
            f"data.cache_gb {data.cache_gb:g}: a window of {data.window} images of {store.name} is in shards of"
            f" {_gb(needed)} GB: set it to {_gb(min(total, 2 * needed))}, for this window and the next, or lower"
            " data.window"
        )
    if min(total, 2 * needed) > limit:
        log.warning(
            "data.cache_gb %g has no room for two windows (%s GB): steps will wait for the next window's shards",
            *(data.cache_gb, _gb(min(total, 2 * needed))),
        )


def _gb(count: float) -> str:
    """Bytes as GB of three digits, rounded up."""
    unit = 10 ** (math.floor(math.log10(count)) - 2)
    return f"{math.ceil(count / unit) * unit / 1e9:.3g}"


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
        given = config.data.label_file or without_secrets(config.data.store)
        raise ConfigError(
            f"{who} needs labels, and {given} has none: build the store from class folders, or name a data.label_file"
        )
    classes = getattr(config.method, "num_classes", None)
    if classes is not None and largest >= classes:
        raise ConfigError(f"method.num_classes {classes}: there is a label {largest}, so it is {largest + 1} or more")
