"""G-SimCLR: train an autoencoder, cluster its latents, then train SimCLR on batches spread over the clusters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from cluster.pipelines.completion import complete, expect_all_images, has_begun, with_data_settings
from cluster.pipelines.label_files import save_labels
from ssl_dist.checkpoint import Checkpoints, checksum
from ssl_dist.commands.console import say, waiting
from ssl_dist.config import ResolvedConfig
from ssl_dist.errors import ConfigError
from ssl_dist.files import write_text
from ssl_dist.uris import without_secrets


class GSimCLR(NamedTuple):
    """The two runs of G-SimCLR; a batch of SimCLR has two images of one cluster only where it must.

    The same command resumes it where it was stopped. The clusters are of all latents of an image (2,048 for CIFAR-10),
    where the authors pool each channel (128): see docs/differences.md.

    Source: Chakraborty et al., "G-SimCLR: Self-Supervised Contrastive Learning with Guided Projection via Pseudo
    Labelling", arXiv 2009.12007.

    Attributes:
        directory: folder of the two runs ``autoencoder/`` and ``simclr/``, of the clusters in ``clusters.npy``, and of
            ``clusters.json``, which says how they were made.
        autoencoder: config of the first run, on the same store as SimCLR's.
        simclr: config of the second run, whose labels will be the clusters.
    """

    directory: Path
    autoencoder: ResolvedConfig
    simclr: ResolvedConfig
    num_clusters: int

    @property
    def label_file(self) -> Path:
        return self.directory / "clusters.npy"

    def run(self, console: Console) -> dict[str, Any]:
        """Complete both runs; a run that was finished before is not repeated.

        Returns:
            The result of ``complete`` for SimCLR's run.

        Raises:
            ConfigError: the two runs have different stores, they leave damaged images out, there are more clusters than
                images, or the clusters differ from those that SimCLR began with.
            RunError: a run was stopped before its last step.
        """
        ours, theirs = self.simclr.data, self.autoencoder.data
        if Path(ours.store).resolve() != Path(theirs.store).resolve():
            raise ConfigError(
                f"the autoencoder's data.store {without_secrets(theirs.store)} is not SimCLR's,"
                f" {without_secrets(ours.store)}, and its clusters would be of other images: leave data.store out of"
                " --set-autoencoder"
            )
        expect_all_images(ours)
        expect_all_images(theirs)
        if (num_images := self.simclr.facts.num_images) < self.num_clusters:
            raise ConfigError(f"{self.num_clusters} clusters of {num_images} images: choose fewer --clusters")
        complete(self.directory / "autoencoder", self.autoencoder, console)
        self._cluster(console)
        simclr = with_data_settings(self.simclr, label_file=str(self.label_file), stratified=True)
        return complete(self.directory / "simclr", simclr, console)

    def _cluster(self, console: Console) -> None:
        """Write the clusters, unless the very same were written before."""
        trained = Checkpoints(self.directory / "autoencoder").newest()
        assert trained, "the autoencoder is complete"
        digest = checksum(trained.model_file)
        wanted = {"clusters": self.num_clusters, "seed": self.autoencoder.seed, "autoencoder": digest}
        record = self.label_file.with_suffix(".json")
        there = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
        if there == wanted and self.label_file.exists():
            return
        if there != wanted and has_begun(self.directory / "simclr"):
            changed = [key for key in wanted if wanted[key] != there.get(key)]
            differing = [f"{key} {wanted[key]} (they have {there.get(key)})" for key in changed]
            raise ConfigError(
                f"{self.label_file} has other clusters, and simclr/ has begun with them: {', '.join(differing)}; use"
                " the settings that it began with, or choose another --run-dir"
            )
        with waiting(f"finding {self.num_clusters} clusters of {self.simclr.facts.num_images:,} images", console):
            labels = self._labels()
        record.unlink(missing_ok=True)  # it must never lie beside other clusters
        save_labels(labels, self.label_file)
        write_text(record, json.dumps(wanted, indent=1))
        sizes = np.bincount(labels, minlength=self.num_clusters)
        say(f"{self.label_file}: {self.num_clusters} clusters of {sizes.min()} to {sizes.max()} images", console)

    def _labels(self) -> np.ndarray:
        from ssl_dist.data import open_store
        from ssl_dist.evaluate import encoder_of, extract, fastest_device
        from ssl_dist.evaluate.pseudo_labels import cluster_labels

        encoder, config, _ = encoder_of(self.directory / "autoencoder")
        store, device = open_store(self.simclr.data), fastest_device()
        features = extract(encoder.to(device), store, np.arange(len(store)), device, config)
        return cluster_labels(features, self.num_clusters, config.seed)
