"""The sample plan: which images a training step uses, and which of their labels the method may see."""

from __future__ import annotations

import numpy as np

from ssl_dist.config import RunConfig
from ssl_dist.data import permutation
from ssl_dist.data.images import LEFT_OUT, Images, read_visible_labels
from ssl_dist.data.stratified_order import StratifiedOrder
from ssl_dist.data.windowed_order import NeededShards, WindowedOrder
from ssl_dist.errors import ConfigError, StoreDamaged
from ssl_dist.hashing import derive_seed

# Numbers that tell apart the seeds derived from the run's seed.
_LABELLED = 1  # the order of the labelled images
_SUBSTITUTES = 3  # the images that replace damaged ones
_TRIES = 100  # to find an intact image


class SamplePlan:
    """The samples of every step of a run, a pure function of the step.

    Where the method sees some labels, the first images of each micro-batch come from a stream of the labelled images,
    and the others from a stream of all images. Where it sees all labels, or ``data.stratified`` draws by label, images
    without a label are left out.

    An image that ``data.label_file`` leaves out (LEFT_OUT) is in neither stream.

    With ``data.damaged`` "skip" a damaged image has no label, and in the stream of all images an intact one replaces
    it. Seed, epoch and image decide which, so it is the same for any number of workers. With ``data.order`` "shards" it
    comes from the same window, if that has an intact image.

    Attributes:
        config, store: as given.
        labels: int32 ``[n]``, the labels that the method or the order uses, below 0: none; empty where neither uses
            any.
        num_samples: images of an epoch. Where the method sees only some labels, an epoch is one pass over all images.
    """

    def __init__(self, config: RunConfig, store: Images) -> None:
        """Read the labels, if they are needed, and choose the orders.

        Raises:
            ConfigError: labels are needed and missing, the method has no class for one of them, or images are left out
                in an order or with a response to damage that does not allow it.
        """
        self.config, self.store = config, store
        stratified, shard_rows = config.data.stratified, store.shard_rows
        by_label = stratified or config.num_labelled > 0
        self.labels = read_visible_labels(config, store) if by_label else np.empty(0, np.int32)
        self._labelled_ids = np.flatnonzero(self.labels >= 0)
        self._left_in: np.ndarray | None = None  # sample ids of the stream of all images; None: all
        if (self.labels == LEFT_OUT).any():
            if config.data.order == "shards" or config.data.damaged == "skip":
                raise ConfigError(
                    f"data.label_file {config.data.label_file} leaves images out ({LEFT_OUT}): that needs"
                    " data.order=full and data.damaged=refuse"
                )
            self._left_in = np.flatnonzero(self.labels != LEFT_OUT)
        only_labelled = by_label and config.num_labelled in (0, config.batch.size)
        everything = len(store) if self._left_in is None else len(self._left_in)
        self.num_samples = len(self._labelled_ids) if only_labelled else everything
        self._labelled_seed = derive_seed(config.seed, _LABELLED)
        self._strata = StratifiedOrder(config.seed, self.labels) if stratified else None
        self._windows: WindowedOrder | None = None
        self._labelled_windows: WindowedOrder | None = None
        if config.data.order == "shards":
            self._windows = WindowedOrder(config.seed, shard_rows, config.data.window)
            if config.num_labelled:
                labelled_rows = np.diff(np.searchsorted(self._labelled_ids, np.cumsum(shard_rows)), prepend=0)
                self._labelled_windows = WindowedOrder(self._labelled_seed, labelled_rows, config.data.window)

    def select(self, step: int, micro_batches: range) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return ids, epochs and labels, each int64 ``[m * len(micro_batches)]``, of some of a step's micro-batches."""
        sizes = self.config.batch
        num_labelled = self.config.num_labelled * sizes.micro // sizes.size
        num_others = sizes.micro - num_labelled
        first, last = (step * sizes.num_micro + number for number in (micro_batches.start, micro_batches.stop))
        ids, epochs = self._stream_all(first * num_others, last * num_others)
        if not num_labelled:
            return ids, epochs, np.full_like(ids, -1)
        seen, seen_epochs = self._stream_labelled(first * num_labelled, last * num_labelled)
        hidden = np.full_like(ids, -1)
        pairs = ((seen, ids), (seen_epochs, epochs), (self.labels[seen].astype(np.int64), hidden))
        ids, epochs, labels = (_interleave(a, b, num_labelled, num_others) for a, b in pairs)
        return ids, epochs, labels

    def needed_shards(self, step: int) -> NeededShards:
        """Return the shards that a step needs on any worker, and those needed next; without windows, all of them."""
        if not self._windows:
            return NeededShards(range(len(self.store.shard_rows)), ())
        needed = [order.needed_shards(step * count, (step + 1) * count) for order, count in self._windowed_streams()]
        return NeededShards([shard for one in needed for shard in one.now], [s for one in needed for s in one.soon])

    def max_window_bytes(self, shard_bytes: np.ndarray) -> float:
        """Return an upper bound of the bytes of the shards that a step needs, if the order has windows."""
        return sum(order.max_window_bytes(shard_bytes) for order, _ in self._windowed_streams())

    def _windowed_streams(self) -> list[tuple[WindowedOrder, int]]:
        """Return the windowed orders that a step draws from, and how many samples it draws from each."""
        labelled = self.config.num_labelled
        streams = ((self._windows, self.config.batch.size - labelled), (self._labelled_windows, labelled))
        return [(order, count) for order, count in streams if order and count]

    def _stream_labelled(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and epochs at positions start .. stop-1 of the stream of labelled images."""
        if self._strata:
            return self._strata.stream(start, stop)
        if self._labelled_windows:
            rows, epochs = self._labelled_windows.stream(start, stop)
        else:
            rows, epochs = permutation.stream(self._labelled_seed, start, stop, len(self._labelled_ids))
        return self._labelled_ids[rows], epochs

    def _stream_all(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and epochs at positions start .. stop-1 of the stream of all images."""
        if self._strata and not self.config.num_labelled:  # else only the labelled stream is stratified
            return self._strata.stream(start, stop)
        if self._windows:
            ids, epochs = self._windows.stream(start, stop)
        elif self._left_in is not None:
            rows, epochs = permutation.stream(self.config.seed, start, stop, len(self._left_in))
            ids = self._left_in[rows]
        else:
            ids, epochs = permutation.stream(self.config.seed, start, stop, len(self.store))
        return (self._replace_damaged(ids, epochs, start) if self.config.data.damaged == "skip" else ids), epochs

    def _replace_damaged(self, ids: np.ndarray, epochs: np.ndarray, start: int) -> np.ndarray:
        """Return the ids at positions ``start`` .. with an intact image for each damaged one.

        Raises:
            StoreDamaged: no intact image was found.
        """
        ids, wanted = ids.copy(), ids
        for tries in range(_TRIES):
            damaged = np.flatnonzero(~self.store.intact(ids))
            if not len(damaged):
                return ids
            seed = derive_seed(self.config.seed, _SUBSTITUTES, tries)
            for index in damaged.tolist():
                epoch, image = int(epochs[index]), int(wanted[index])
                other = int(permutation.sample_ids(seed, epoch, image, image + 1, len(self.store))[0])
                windows = self._windows if tries < _TRIES // 2 else None  # the window may have no intact image
                ids[index] = windows.sample_in_window(start + index, other) if windows else other
        raise StoreDamaged(f"{self.config.data.store}: next to no image is intact; build the store again")


def _interleave(a: np.ndarray, b: np.ndarray, size_a: int, size_b: int) -> np.ndarray:
    """Join ``size_a`` values of ``a``, ``size_b`` of ``b``, the next ``size_a`` of ``a``, and so on."""
    times = len(a) // size_a
    return np.concatenate([a.reshape(times, size_a), b.reshape(times, size_b)], axis=1).ravel()
