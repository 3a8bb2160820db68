"""Self-training: in rounds, a classifier labels the images that it is surest of, and the next learns from them too."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

from cluster.pipelines.completion import complete, expect_all_images, has_begun, with_data_settings
from cluster.pipelines.label_files import save_labels
from ssl_dist import methods
from ssl_dist.commands.console import waiting
from ssl_dist.config import ResolvedConfig
from ssl_dist.data import open_store, read_labels
from ssl_dist.errors import ConfigError, StoreError
from ssl_dist.evaluate.labelled import labels_by_name, open_labelled
from ssl_dist.reading import exact
from ssl_dist.store import ImageStore


class Round(NamedTuple):
    """The results of one round.

    Attributes:
        labelled: number of labels that the round learned from.
        added: how many of them the classifier of the round before gave.
        right: share of the added labels that agree with the store; None where the store has no labels for them.
        accuracy: share of the test store's images that the round's classifier gets right.
    """

    labelled: int
    added: int
    right: float | None
    accuracy: float


class SelfTraining(NamedTuple):
    """The rounds of self-training; the same command resumes them where they were stopped.

    Attributes:
        directory: folder of the runs ``round-0/`` and so on, with each round's labels beside its run.
        config: config of a method that classifies, on a store in which some images have labels.
        test: labelled store that decides which round is the last, so the accuracy on it is a little too high.
        share: share of the unlabelled images that get a label in a round, in (0, 1]; at least one image.
        margin: a round that gains less accuracy than this is the last.
        rounds: largest number of rounds after the first.
        steps: of each round, however many labels it has; None: as ``config.epochs`` says.
    """

    directory: Path
    config: ResolvedConfig
    test: str
    share: float
    margin: float
    rounds: int
    steps: int | None = None

    def run(self, console: Console) -> list[Round]:
        """Complete all rounds; a round that was finished before is not repeated.

        Raises:
            ConfigError: the method does not classify, damaged images are left out, every image has a label, the share
                is out of range, or a round has begun with other labels.
            StoreError: the test store has images of another size or other classes.
            RunError: a round was stopped before its last step.
        """
        expect_all_images(self.config.data)
        store = open_store(self.config.data)
        labels, found = read_labels(self.config, store), list[Round]()
        test, truth = self._open_test_store(store, labels)
        for number in range(self.rounds + 1):
            if number and (labels != -1).all():
                break
            with waiting(f"round {number}: choosing its labels", console):
                before, config = labels, self._config_of(number, store, labels)
            labels = read_labels(config, store)
            complete(self._run_of(number), config, console)
            added = np.flatnonzero(labels != before)
            with waiting(f"round {number}: classifying {test.name}", console):
                accuracy = self._accuracy(number, test, truth)
            found.append(Round(int((labels >= 0).sum()), len(added), _right(labels, store.labels, added), accuracy))
            if number and found[-1].accuracy - found[-2].accuracy < self.margin:
                break
        return found

    def _open_test_store(self, store: ImageStore, labels: np.ndarray) -> tuple[ImageStore, np.ndarray]:
        """Return the test store and its labels, int32 [n]; refuse it, or the settings, if they do not fit."""
        method = self.config.method
        num_classes: int | None = getattr(method, "num_classes", None)
        if num_classes is None:
            fitting = [name for name in methods.names() if "num_classes" in methods.config_of(name).model_fields]
            raise ConfigError(f"method {method.name} does not classify: self-train takes {' or '.join(fitting)}")
        if not 0 < self.share <= 1:
            raise ConfigError(f"--share {self.share:g}: it must be more than 0 and at most 1")
        if (labels != -1).all():
            raise ConfigError(f"{store.name}: every image has a label; name the few in a data.label_file")
        test = open_labelled(self.test, self.config.data, store.image_shape)
        truth = labels_by_name(store, test) if store.class_names else test.labels
        if (largest := int(truth.max())) >= num_classes:
            raise StoreError(
                f"{test.name} has a label {largest}, which a classifier of method.num_classes {num_classes} never gives"
            )
        return test, truth

    def _run_of(self, number: int) -> Path:
        return self.directory / f"round-{number}"

    def _config_of(self, number: int, store: ImageStore, labels: np.ndarray) -> ResolvedConfig:
        """Return a round's config, with the labels that it learns from.

        The first round learns from ``labels``, a later one also from labels that the classifier before it adds. A round
        that has begun keeps its labels: on another machine sums are rounded differently, and others would come out.
        """
        count = max(1, round(exact(self.share) * int((labels == -1).sum()))) if number else 0
        file = self.directory / f"labels-{number}.npy"
        if not has_begun(self._run_of(number)):
            save_labels(self._more(number - 1, store, labels, count) if number else labels, file)
        config = with_data_settings(self.config, label_file=str(file))
        if self.steps is not None:
            config = config.with_steps(self.steps)
        there, old = read_labels(config, store), labels >= 0
        if (there[old] != labels[old]).any() or (there >= 0).sum() != old.sum() + count:
            raise ConfigError(
                f"{file} has {(there >= 0).sum()} labels, and round {number} has begun with them; with these"
                f" settings it would have {old.sum() + count}, {count} of them added (--share {self.share:g}): use the"
                " settings that it began with, or choose another --run-dir"
            )
        return config

    def _more(self, number: int, store: ImageStore, labels: np.ndarray, count: int) -> np.ndarray:
        """Return the labels, with the ``count`` further ones of which a round's classifier is surest."""
        from ssl_dist.evaluate.pseudo_labels import most_confident, predict  # imports torch: mistakes are told before

        without = np.flatnonzero(labels == -1)
        rows, classes = most_confident(predict(self._run_of(number), store, without), count)
        more = labels.copy()
        more[without[rows]] = classes
        return more

    def _accuracy(self, number: int, test: ImageStore, truth: np.ndarray) -> float:
        from ssl_dist.evaluate.pseudo_labels import predict

        rows = np.flatnonzero(truth >= 0)
        classes = predict(self._run_of(number), test, rows).argmax(1).numpy()
        return float((classes == truth[rows]).mean())


def _right(labels: np.ndarray, truth: np.ndarray, rows: np.ndarray) -> float | None:
    known = rows[truth[rows] >= 0]
    return float((labels[known] == truth[known]).mean()) if len(known) else None
