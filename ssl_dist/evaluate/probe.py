"""Online kNN while training goes on: labelled images of the pretraining store against others of it.

Their labels are used nowhere else; the images are trained on like all others. For a figure on images that the encoder
has never seen, see ``evaluate.compare``.
"""

from __future__ import annotations

import numpy as np
import torch

from ssl_dist import order
from ssl_dist.backbones import Backbone
from ssl_dist.collectives import Shares, World
from ssl_dist.config import ProbeConfig
from ssl_dist.evaluate.features import extract
from ssl_dist.evaluate.knn import knn_accuracy
from ssl_dist.store import ImageStore

_STREAM = -1  # the "epoch" whose permutation chooses the probe's images: none that training uses


class Probe:
    """A fixed choice of bank and query images among the labelled ones, empty where there are none.

    A store of fewer labelled images than asked for gives four fifths of them to the bank.
    """

    def __init__(self, config: ProbeConfig, store: ImageStore, seed: int) -> None:
        rows = np.flatnonzero(store.labels >= 0)
        self.num_bank = min(config.bank, len(rows) * 4 // 5)
        num_queries = min(config.queries, len(rows) - self.num_bank)
        chosen = order.sample_ids(seed, _STREAM, 0, self.num_bank + num_queries, len(rows)) if len(rows) else rows
        self.ids, self.k = rows[chosen], min(config.k, self.num_bank)
        self._store = store

    def accuracy(self, backbone: Backbone, world: World) -> float | None:
        """kNN accuracy in [0, 1] on every rank; each calls and embeds its part. None: too few labelled images."""
        if not self.num_bank or self.num_bank == len(self.ids):
            return None
        # equal parts, filled up with the first image: ZeRO-3 gathers weights in every forward pass, on all ranks
        share = -(-len(self.ids) // world.size)
        padded = np.pad(self.ids, (0, share * world.size - len(self.ids)), mode="wrap")
        mine = padded[world.rank * share : (world.rank + 1) * share]
        features = extract(backbone, self._store, mine, world.device)
        gathered = Shares.of(features).gather(features)
        features = gathered[: len(self.ids)]
        labels = torch.from_numpy(self._store.labels[self.ids]).long().to(world.device)
        bank, queries = features[: self.num_bank], features[self.num_bank :]
        return knn_accuracy(bank, labels[: self.num_bank], queries, labels[self.num_bank :], k=self.k)
