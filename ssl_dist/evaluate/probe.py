"""The online probe: it measures how good the encoder is during training.

``knn`` and ``linear`` use held-out labels: some labelled images of the pretraining store (the bank) classify others
(the queries). Their labels are used nowhere else; the images themselves are trained on like all others. ``rankme``
and ``lidar`` need no labels; ``validation`` has a module of its own. For a figure on images that the encoder has
never seen, use ``evaluate.compare``.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ssl_dist.backbones import Backbone
from ssl_dist.collectives import World
from ssl_dist.config import RunConfig
from ssl_dist.data.permutation import sample_ids
from ssl_dist.data.windowed_order import WindowedOrder
from ssl_dist.evaluate.features import extract, extract_view, over_workers
from ssl_dist.evaluate.knn import knn_accuracy
from ssl_dist.evaluate.linear import linear_accuracy
from ssl_dist.evaluate.rank import LIDAR_VIEWS, lidar, rankme
from ssl_dist.store import ImageStore

_STREAM = -1  # the "epoch" whose permutation chooses the probe's images; training uses epochs from 0


class Probe:
    """A fixed choice of images: labelled ones for ``knn`` and ``linear``, any for ``rankme`` and ``lidar``.

    A store with fewer labelled images than the settings ask for gives four fifths of them to the bank.
    """

    def __init__(self, config: RunConfig, store: ImageStore) -> None:
        assert config.probe, "a run without a probe has none"
        self.kind = config.probe.kind
        self._store, self._config = store, config
        with_labels = self.kind in ("knn", "linear")
        rows = candidates(config, store, with_labels=with_labels)
        self.num_bank = min(config.probe.bank, len(rows) * 4 // 5 if with_labels else len(rows))
        num_queries = min(config.probe.queries, len(rows) - self.num_bank) if with_labels else 0
        chosen = sample_ids(config.seed, _STREAM, 0, self.num_bank + num_queries, len(rows)) if len(rows) else rows
        self.ids = rows[chosen]
        if config.data.damaged == "skip" and not with_labels:  # a damaged image has no label
            self.ids = self.ids[store.intact(self.ids)]
            self.num_bank = len(self.ids)
        if config.data.order == "shards":  # sorted, so that each shard is read once or twice
            self.ids = np.concatenate([np.sort(self.ids[: self.num_bank]), np.sort(self.ids[self.num_bank :])])
        self.k = min(config.probe.k, self.num_bank)

    @property
    def num_queries(self) -> int:
        """Number of images that are classified; of a rank, of those that it is measured on."""
        return len(self.ids) - self.num_bank if self.kind in ("knn", "linear") else self.num_bank

    @property
    def possible(self) -> bool:
        """True where the store has images for the probe, with labels where it needs them."""
        return self.num_bank > 0 and (self.kind in ("rankme", "lidar") or self.num_bank < len(self.ids))

    def score(self, backbone: Backbone, world: World) -> float | None:
        """Measure the encoder; every rank calls, embeds its part and returns the same value.

        Returns:
            An accuracy in [0, 1], or an effective rank; higher is better. None where the probe is not possible.
        """
        if not self.possible:
            return None
        if self.kind == "lidar":
            views = [self._features(backbone, world, view) for view in range(LIDAR_VIEWS)]
            return lidar(torch.stack(views, dim=1))
        features = self._features(backbone, world, None)
        if self.kind == "rankme":
            return rankme(features)
        labels = torch.from_numpy(self._store.labels_at(self.ids)).long().to(world.device)
        bank, queries = features[: self.num_bank], features[self.num_bank :]
        bank_labels, query_labels = labels[: self.num_bank], labels[self.num_bank :]
        if self.kind == "linear":
            return linear_accuracy(bank, bank_labels, queries, query_labels)
        return knn_accuracy(bank, bank_labels, queries, query_labels, k=self.k)

    def _features(self, backbone: Backbone, world: World, view: int | None) -> Tensor:
        """Return features [n, D] of all ``ids`` on every rank: of whole images, or of random view number ``view``."""

        def features_of(ids: np.ndarray) -> Tensor:
            given = (backbone, self._store, ids, world.device, self._config)
            return extract(*given) if view is None else extract_view(*given, seed=self._config.seed, number=view)

        return over_workers(self.ids, world, features_of)


def candidates(config: RunConfig, store: ImageStore, *, with_labels: bool) -> np.ndarray:
    """Return the rows to choose from: all images, or one window's where an epoch goes through the shards in windows."""
    if config.data.order == "full":
        return np.flatnonzero(store.labels >= 0) if with_labels else np.arange(len(store))
    windows = WindowedOrder(config.seed, store.shard_rows, config.data.window)
    ends = np.cumsum(store.shard_rows)
    chosen = sorted(windows.needed_shards(0, 1).now)
    rows = np.concatenate([np.arange(ends[shard] - store.shard_rows[shard], ends[shard]) for shard in chosen])
    return rows[store.labels_at(rows) >= 0] if with_labels else rows
