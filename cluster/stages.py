"""Several runs, of which the later need what the earlier leave. Called again, they go on where they were."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from cluster.launch import launch
from cluster.run_directory import RunDirectory
from ssl_dist import checkpoint
from ssl_dist.config import RunConfig
from ssl_dist.errors import ConfigError, RunError

_MAY_DIFFER = {"cluster", "checkpoint", "monitor"}  # how fast and where a run is, not which model comes out


def complete(directory: Path, config: RunConfig, console: Console) -> dict[str, Any]:
    """The run of this config in a directory: begun, gone on with, or found finished.

    Returns:
        ``step`` and, unless it was finished, the last metrics.

    Raises:
        ConfigError: another run is there.
    """
    if (directory / "config.json").exists():
        run, before = RunDirectory.reopen(directory)
        if before.model_dump(exclude=_MAY_DIFFER) != config.model_dump(exclude=_MAY_DIFFER):
            raise ConfigError(f"{directory} holds a run of other settings: choose another --run-dir")
        run.update(config)
    else:
        run = RunDirectory.create(directory, config)
    try:
        assert config.data.num_samples, "the store was opened before"
        found = checkpoint.newest(directory)
        if found and found.step == config.plan(config.data.num_samples).total_steps:
            console.print(f"{directory}: finished before", markup=False, highlight=False, soft_wrap=True)
            return {"step": found.step}
        console.print(f"{directory}", markup=False, highlight=False, soft_wrap=True)
        return launch(config, run, console)
    finally:
        run.leave()


class GSimCLR(NamedTuple):
    """G-SimCLR: an autoencoder's latents are clustered, and no batch of SimCLR has two images of a cluster more often
    than it must.

    Source: Chakraborty et al., "G-SimCLR: Self-Supervised Contrastive Learning with Guided Projection via Pseudo
    Labelling", arXiv 2009.12007.

    Attributes:
        directory: gets ``autoencoder/`` and ``simclr/``, two runs, and ``clusters.npy`` between them.
        num_clusters: None: as many as a batch of SimCLR has images.
    """

    directory: Path
    autoencoder: RunConfig
    simclr: RunConfig
    num_clusters: int | None

    @property
    def label_file(self) -> Path:
        return self.directory / "clusters.npy"

    def cluster(self) -> dict[str, Any]:
        """The second stage, which the first must be through with."""
        import torch

        from ssl_dist.evaluate import cluster_labels, encoder_of, extract
        from ssl_dist.store import ImageStore

        count = self.num_clusters or self.simclr.batch.size
        backbone, config, _ = encoder_of(self.directory / "autoencoder")
        store = ImageStore(config.data.store)
        if len(store) < count:
            raise RunError(f"{count} clusters of {len(store)} images: choose fewer --clusters")
        features = extract(backbone, store, np.arange(len(store)), torch.device("cpu"))
        labels = cluster_labels(features, count, config.seed)
        _save(labels, self.label_file)
        sizes = np.bincount(labels, minlength=count)
        return {"clusters": count, "smallest": int(sizes.min()), "largest": int(sizes.max())}


class Round(NamedTuple):
    """Of self-training: how many labels it learnt from, those added for it, how many of these are right (None where the
    store does not know), and accuracy on the test store."""

    labelled: int
    added: int
    right: float | None
    accuracy: float


class SelfTraining(NamedTuple):
    """Pseudo-labels in rounds: a classifier names the images that it is surest of, and the next learns from these too.

    Attributes:
        directory: gets ``round-0/`` and so on, runs of their own, and the labels of each beside it.
        config: of a method that classifies, on a store of which some images have labels.
        test: labelled store that decides when to stop, so its accuracy is a little too good.
        share: of the images without a label, how many get one in a round.
        margin: a round that gains less than this is the last.
        rounds: after the first, at most.
    """

    directory: Path
    config: RunConfig
    test: Path
    share: float
    margin: float
    rounds: int

    def run(self, console: Console) -> list[Round]:
        """All rounds, those that are finished included.

        Raises:
            ConfigError: there is nothing without a label.
        """
        from ssl_dist.samples import labels_of, open_data
        from ssl_dist.store import ImageStore

        store = ImageStore(self.config.data.store)
        labels, found = labels_of(self.config, store), list[Round]()
        if (labels >= 0).all():
            raise ConfigError(f"{self.config.data.store}: every image has a label; name the few in a data.label_file")
        added = np.empty(0, dtype=np.int64)
        for number in range(self.rounds + 1):
            file = self.directory / f"labels-{number}.npy"
            self.directory.mkdir(parents=True, exist_ok=True)
            _save(labels, file)
            tree = self.config.model_dump()
            tree["data"] = {"store": self.config.data.store, "label_file": str(file)}
            config = RunConfig.from_tree(tree, str(file))
            config = config.model_copy(update={"data": open_data(config)[1]})
            complete(self.directory / f"round-{number}", config, console)
            right = _right(labels, store.labels, added)
            found.append(Round(int((labels >= 0).sum()), len(added), right, self._accuracy(number)))
            if number and found[-1].accuracy - found[-2].accuracy < self.margin:
                break
            labels, added = self._more(number, store, labels)
            if not len(added):
                break
        return found

    def _accuracy(self, number: int) -> float:
        from ssl_dist.evaluate import labelled, predict

        test = labelled(self.test, self.config.data.image_shape)
        rows = np.flatnonzero(test.labels >= 0)
        classes = predict(self.directory / f"round-{number}", test, rows).argmax(1).numpy()
        return float((classes == test.labels[rows]).mean())

    def _more(self, number: int, store: Any, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The labels with those that this round's classifier is surest of, and the rows of these."""
        from ssl_dist.evaluate import most_confident, predict

        without = np.flatnonzero(labels < 0)
        count = min(len(without), round(self.share * (labels < 0).sum()) or 1)
        rows, classes = most_confident(predict(self.directory / f"round-{number}", store, without), count)
        more = labels.copy()
        more[without[rows]] = classes
        return more, without[rows]


def _right(labels: np.ndarray, truth: np.ndarray, rows: np.ndarray) -> float | None:
    known = rows[truth[rows] >= 0]
    return float((labels[known] == truth[known]).mean()) if len(known) else None


def _save(labels: np.ndarray, file: Path) -> None:
    aside = file.with_suffix(".tmp.npy")
    np.save(aside, labels)
    os.replace(aside, file)
