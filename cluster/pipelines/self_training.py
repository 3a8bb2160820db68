"""Self-training: pseudo-labels in rounds."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

from cluster.pipelines.stages import begun, complete, expect_no_skip, save_labels, with_data
from ssl_dist import methods
from ssl_dist.config import RunConfig
from ssl_dist.data.sample_plan import labels_of, open_store
from ssl_dist.errors import ConfigError, StoreError
from ssl_dist.evaluate import expect_same_classes, labelled, most_confident, predict
from ssl_dist.store import ImageStore


class Round(NamedTuple):
    """Of self-training: how many labels it learnt from, those added for it, how many of these are right (None where the
    store does not know), and accuracy on the test store."""

    labelled: int
    added: int
    right: float | None
    accuracy: float


class SelfTraining(NamedTuple):
    """A classifier names the images that it is surest of, and the next learns from these too. Called again, it goes on
    where it was.

    Attributes:
        directory: gets ``round-0/`` and so on, runs of their own, and the labels of each beside it.
        config: of a method that classifies, on a store of which some images have labels; the store was opened.
        test: labelled store that decides when to stop, so its accuracy is a little too good.
        share: of the images without a label, how many get one in a round (one at least): in (0, 1].
        margin: a round that gains less than this is the last.
        rounds: after the first, at most.
    """

    directory: Path
    config: RunConfig
    test: str
    share: float
    margin: float
    rounds: int

    def run(self, console: Console) -> list[Round]:
        """All rounds, those that are finished included.

        Raises:
            ConfigError: the method does not classify, damage is skipped, there is nothing without a label, the share is
                none, or a round has begun with other labels.
            StoreError: the test store has other images or classes.
            RunError: a round was stopped before its last step.
        """
        expect_no_skip(self.config.data)
        store = open_store(self.config.data)
        labels, found = labels_of(self.config, store), list[Round]()
        test = self._checked(store, labels)
        for number in range(self.rounds + 1):
            if number and (labels >= 0).all():
                break
            before, config = labels, self._config_of(number, store, labels)
            labels = labels_of(config, store)
            complete(self._run_of(number), config, console)
            added = np.flatnonzero(labels != before)
            accuracy = self._accuracy(number, test)
            found.append(Round(int((labels >= 0).sum()), len(added), _right(labels, store.labels, added), accuracy))
            if number and found[-1].accuracy - found[-2].accuracy < self.margin:
                break
        return found

    def _checked(self, store: ImageStore, labels: np.ndarray) -> ImageStore:
        """The test store, all being well with it and with what was asked for."""
        method = self.config.method
        num_classes: int | None = getattr(method, "num_classes", None)
        if num_classes is None:
            fitting = [name for name in methods.names() if "num_classes" in methods.load(name).Config.model_fields]
            raise ConfigError(f"method {method.name} does not classify: self-train takes {' or '.join(fitting)}")
        if not 0 < self.share <= 1:
            raise ConfigError(f"--share {self.share:g}: more than 0, and 1 at most")
        if (labels >= 0).all():
            raise ConfigError(f"{store.name}: every image has a label; name the few in a data.label_file")
        test = labelled(self.test, self.config.data, store.image_shape)
        if store.class_names:
            expect_same_classes(store, test)
        if (largest := int(test.labels.max())) >= num_classes:
            raise StoreError(
                f"{test.name} has a label {largest}, which a classifier of method.num_classes {num_classes} never gives"
            )
        return test

    def _run_of(self, number: int) -> Path:
        return self.directory / f"round-{number}"

    def _config_of(self, number: int, store: ImageStore, labels: np.ndarray) -> RunConfig:
        """A round's: the first learns from ``labels``, a later one also from what the classifier before it adds. A
        round that has begun keeps the labels that it has: elsewhere a sum is rounded otherwise, and others come out."""
        count = max(1, round(self.share * (labels < 0).sum())) if number else 0
        file = self.directory / f"labels-{number}.npy"
        if not begun(self._run_of(number)):
            save_labels(self._more(number - 1, store, labels, count) if number else labels, file)
        config = with_data(self.config, label_file=str(file))
        there, old = labels_of(config, store), labels >= 0
        if (there[old] != labels[old]).any() or (there >= 0).sum() != old.sum() + count:
            raise ConfigError(
                f"{file} has {(there >= 0).sum()} labels, and round {number} has begun with them; called like this it"
                f" would have {old.sum() + count}, {count} of them added (--share {self.share:g}): call as before, or"
                " choose another --run-dir"
            )
        return config

    def _more(self, number: int, store: ImageStore, labels: np.ndarray, count: int) -> np.ndarray:
        """The labels, and ``count`` more of which a round's classifier is surest."""
        without = np.flatnonzero(labels < 0)
        rows, classes = most_confident(predict(self._run_of(number), store, without), count)
        more = labels.copy()
        more[without[rows]] = classes
        return more

    def _accuracy(self, number: int, test: ImageStore) -> float:
        rows = np.flatnonzero(test.labels >= 0)
        classes = predict(self._run_of(number), test, rows).argmax(1).numpy()
        return float((classes == test.labels[rows]).mean())


def _right(labels: np.ndarray, truth: np.ndarray, rows: np.ndarray) -> float | None:
    known = rows[truth[rows] >= 0]
    return float((labels[known] == truth[known]).mean()) if len(known) else None
