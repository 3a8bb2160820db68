"""Validation of a classifier while it learns, on labelled images of its store whose labels it does not learn from."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ssl_dist.collectives import World
from ssl_dist.config import RunConfig
from ssl_dist.data.images import read_validation_labels
from ssl_dist.evaluate.features import extract, over_workers
from ssl_dist.methods import Method
from ssl_dist.store import ImageStore


class Validated(NamedTuple):
    """Accuracy in [0, 1] and mean cross-entropy over the validation images."""

    accuracy: float
    loss: float


class Validation:
    """The images of ``probe.label_file``, which the method's own classifier is measured on."""

    def __init__(self, config: RunConfig, store: ImageStore) -> None:
        self._config, self._store = config, store
        labels = read_validation_labels(config, store)
        self.ids = np.flatnonzero(labels >= 0)
        self.labels = torch.from_numpy(labels[self.ids]).long()

    @property
    def num_queries(self) -> int:
        """Number of images that are classified."""
        return len(self.ids)

    def measure(self, method: Method, world: World) -> Validated:
        """Classify whole images in evaluation mode; every rank calls, embeds a part and returns rank 0's figures.

        The rate and the end of a run may follow from the loss, so no rank may have one that is rounded differently.
        """
        classifier = method.get_submodule("classifier")
        network = nn.Sequential(method.backbone, classifier).train(method.training)
        logits = over_workers(
            self.ids, world, lambda ids: extract(network, self._store, ids, world.device, self._config)
        )
        truth, logits = self.labels.to(logits.device), logits.double()
        figures = torch.stack([(logits.argmax(1) == truth).double().mean(), cross_entropy(logits, truth)])
        accuracy, loss = world.sum_(figures * (world.rank == 0)).tolist()
        return Validated(accuracy, loss)
