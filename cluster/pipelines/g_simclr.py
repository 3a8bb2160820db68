"""G-SimCLR: an autoencoder, clusters of its latents, SimCLR on batches across clusters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from cluster.pipelines.stages import begun, complete, expect_no_skip, save_labels, with_data
from ssl_dist.checkpoint import Checkpoints, checksum
from ssl_dist.config import RunConfig
from ssl_dist.errors import ConfigError
from ssl_dist.files import write_text
from ssl_dist.uris import without_secrets


class GSimCLR(NamedTuple):
    """An autoencoder's latents are clustered, and no batch of SimCLR has two images of a cluster more often than it
    must. Called again, it goes on where it was.

    Source: Chakraborty et al., "G-SimCLR: Self-Supervised Contrastive Learning with Guided Projection via Pseudo
    Labelling", arXiv 2009.12007.

    Attributes:
        directory: gets ``autoencoder/`` and ``simclr/``, two runs, and between them ``clusters.npy`` and, of what these
            are, ``clusters.json``.
        autoencoder: its store was opened; it is SimCLR's.
        simclr: its store was opened; its labels are the clusters.
    """

    directory: Path
    autoencoder: RunConfig
    simclr: RunConfig
    num_clusters: int

    @property
    def label_file(self) -> Path:
        return self.directory / "clusters.npy"

    def run(self, console: Console) -> dict[str, Any]:
        """All stages, those that are finished included.

        Returns:
            What ``complete`` returns of SimCLR's run.

        Raises:
            ConfigError: two stores, damage is skipped, more clusters than images, or others than a stage began with.
            RunError: a stage was stopped before its last step.
        """
        ours, theirs = self.simclr.data, self.autoencoder.data
        if Path(ours.store).resolve() != Path(theirs.store).resolve():
            raise ConfigError(
                f"the autoencoder's data.store {without_secrets(theirs.store)} is not SimCLR's,"
                f" {without_secrets(ours.store)}, of which the clusters are: leave it out of --set-autoencoder"
            )
        expect_no_skip(ours)
        expect_no_skip(theirs)
        assert ours.num_images, "the store was opened before"
        if ours.num_images < self.num_clusters:
            raise ConfigError(f"{self.num_clusters} clusters of {ours.num_images} images: choose fewer --clusters")
        complete(self.directory / "autoencoder", self.autoencoder, console)
        self._cluster(console)
        simclr = with_data(self.simclr, label_file=str(self.label_file), stratified=True)
        return complete(self.directory / "simclr", simclr, console)

    def _cluster(self, console: Console) -> None:
        """Write the clusters, unless those that are there are these."""
        trained = Checkpoints(self.directory / "autoencoder").newest()
        assert trained, "the stage before is complete"
        wanted = {
            "clusters": self.num_clusters,
            "seed": self.autoencoder.seed,
            "autoencoder": checksum(trained.model_file),
        }
        record = self.label_file.with_suffix(".json")
        there = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
        if there == wanted and self.label_file.exists():
            return
        if there != wanted and begun(self.directory / "simclr"):
            differing = [
                f"{key} {wanted[key]} (they have {there.get(key)})" for key in wanted if wanted[key] != there.get(key)
            ]
            raise ConfigError(
                f"{self.label_file} has other clusters, and simclr/ has begun with them: {', '.join(differing)}; call"
                " as before, or choose another --run-dir"
            )
        labels = self._labels()
        record.unlink(missing_ok=True)  # it is there only beside the clusters that it is of
        save_labels(labels, self.label_file)
        write_text(record, json.dumps(wanted, indent=1))
        sizes = np.bincount(labels, minlength=self.num_clusters)
        text = f"{self.label_file}: {self.num_clusters} clusters of {sizes.min()} to {sizes.max()} images"
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _labels(self) -> np.ndarray:
        from ssl_dist.data.sample_plan import open_store
        from ssl_dist.evaluate import cluster_labels, encoder_of, extract, fastest_device

        encoder, config, _ = encoder_of(self.directory / "autoencoder")
        store, device = open_store(self.simclr.data), fastest_device()
        features = extract(encoder.to(device), store, np.arange(len(store)), device)
        return cluster_labels(features, self.num_clusters, config.seed)
