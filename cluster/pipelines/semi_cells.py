"""The runs of a comparison of semi-supervised methods: their labels and their settings. Torch is not needed."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cluster.pipelines.cells import Opened, halve_batch, safe_name
from cluster.pipelines.label_files import listing, write_labels
from cluster.pipelines.origin import Origin
from cluster.prepare import resolve_settings
from ssl_dist.config import ResolvedConfig, RunConfig
from ssl_dist.config.overrides import put_override
from ssl_dist.data.images import LEFT_OUT
from ssl_dist.data.permutation import sample_ids
from ssl_dist.errors import ConfigError
from ssl_dist.evaluate.label_draw import draw
from ssl_dist.files import write_text
from ssl_dist.hashing import derive_seed

METHODS = ("supervised", "fixmatch", "pseudo-labels")
_UNLABELLED = 1  # tells the seed of the unlabelled images apart from others
_COMMAND = "evaluate semi"  # for messages
OWN = ("data.", "method.", "batch.", "epochs.", "probe.", "augment.recipe.")  # the command sets them


class SemiCell(NamedTuple):
    """One run, or with pseudo-labels two in a row.

    Attributes:
        method: one of METHODS.
        start: "run" or "random".
        ratio: unlabelled images for each labelled one; 0 for supervised.
        steps: of each run.
    """

    method: str
    start: str
    ratio: int
    seed: int
    directory: Path
    config: ResolvedConfig
    steps: int


@dataclass(frozen=True)
class SemiProtocol:
    """A comparison as it was asked for; ``cells`` are its runs.

    Attributes:
        settings: of all runs, by dotted key.
        ratios: unlabelled images for each labelled one.
        labels: how many are drawn, see ``label_draw.draw``.
        epochs: passes over the labelled images, which make the steps of every run.
        batch: labelled and unlabelled images of a step.
        threshold: FixMatch's.
        stores: the training and the test store.
    """

    directory: Path
    origin: Origin
    settings: Mapping[str, Any]
    ratios: Sequence[int]
    starts: Sequence[str]
    seeds: int
    labels: str
    epochs: float
    batch: tuple[int, int]
    threshold: float | None
    stores: tuple[str, str]

    @functools.cached_property
    def opened(self) -> Opened:
        """The stores; raises as ``Opened.of`` does."""
        return Opened.of(self.stores, RunConfig.from_tree(self._tree("supervised", "random"), _COMMAND).data)

    @functools.cached_property
    def cells(self) -> list[SemiCell]:
        """The runs, those of all seeds of a row together; their labels are drawn, and written into ``directory``.

        Raises:
            ConfigError: a setting is out of range, there are not so many images, or others were drawn there before.
            StoreError: see ``Opened.of``.
        """
        self.origin.expect_start(self.starts)
        base = RunConfig.from_tree(self._tree("supervised", "random"), _COMMAND).seed
        seeds = [base + number for number in range(self.seeds)]
        for method in ("supervised", "fixmatch"):
            RunConfig.from_tree(self._tree(method, "random"), _COMMAND)
        files = {seed: self._write(seed) for seed in seeds}
        rows = [("supervised", 0), *itertools.product(METHODS[1:], self.ratios)]
        return [
            self._cell(method, start, ratio, seed, files[seed][ratio])
            for start, (method, ratio), seed in itertools.product(self.starts, rows, seeds)
        ]

    def _write(self, seed: int) -> dict[int, Path]:
        """Draw the labels and the unlabelled images of each ratio; return the label files by ratio."""
        train, labelled = self.opened.train, np.flatnonzero(self.opened.train.labels >= 0)
        drawn = labelled[draw(train.labels[labelled], self.labels, seed, train.class_names)]
        others = np.setdiff1d(np.arange(len(train)), drawn)
        if (most := max(self.ratios) * len(drawn)) > len(others):
            raise ConfigError(
                f"--ratios 1:{max(self.ratios)} of {len(drawn)} labelled images needs {most:,} others, and"
                f" {train.name} has {len(others):,}: draw fewer --labels, or add images by ssl-dist store merge"
            )
        place, files, contents = self.directory / f"{len(drawn)}-labels-seed-{seed}", {}, {}
        for ratio in (0, *self.ratios):
            labels = np.full_like(train.labels, LEFT_OUT)
            order = sample_ids(derive_seed(seed, _UNLABELLED), 0, 0, ratio * len(drawn), len(others))
            labels[others[order]] = -1  # a larger ratio has those of a smaller one
            labels[drawn] = train.labels[drawn]
            files[ratio] = place.with_name(f"{place.name}-1-{ratio}.npy")
            contents[files[ratio]] = labels
        write_labels(contents)
        if not (listed := place.with_name(f"{place.name}.csv")).exists():
            write_text(listed, listing(train, drawn, np.empty(0, dtype=np.int64)))
        return files

    def _cell(self, method: str, start: str, ratio: int, seed: int, labels: Path) -> SemiCell:
        tree = self._tree("fixmatch" if method == "fixmatch" else "supervised", start)
        tree["seed"] = seed
        put_override(tree, "data.label_file", str(labels))
        count = int((np.load(labels) >= 0).sum())
        steps = int(self.epochs * count / self.batch[0])
        if not steps:
            raise ConfigError(
                f"--epochs {self.epochs:g} of {count} labels are less than one batch of {self.batch[0]}: raise --epochs"
            )
        if method == "fixmatch" and self.batch[1] > (1 + ratio) * count:
            raise ConfigError(
                f"--unlabelled-batch {self.batch[1]}: at a ratio of 1:{ratio} {count} labels have {ratio * count}"
                f" others: set it to {(1 + ratio) * count} or less, or draw more --labels"
            )
        config = resolve_settings(RunConfig.from_tree(tree, _COMMAND)).with_steps(steps)
        row = method if ratio == 0 else f"{method}-1-{ratio}"
        name = "-".join([self.origin.name if start == "run" else "random", f"{count}-labels", row, f"seed-{seed}"])
        return SemiCell(method, start, ratio, seed, self.directory / safe_name(name), config, steps)

    def _tree(self, method: str, start: str) -> dict[str, Any]:
        """Return the settings of a run as a tree; the epochs are replaced once its images are known."""
        tree, (labelled, others) = self.origin.tree(self.stores[0]), self.batch
        tree |= {"epochs": self.epochs, "probe": None, "checkpoint": {"keep": 1}, "method": {"name": method}}
        tree["batch"] = {"size": labelled}
        if method == "fixmatch":
            tree["augment"]["recipe"] = "weak-strong"
            tree["method"]["threshold"] = self.threshold
            tree["batch"] = {"size": labelled + others, "labelled": labelled}
        halve_batch(tree)
        if labelled % 2:
            tree["batch"]["micro"] = tree["batch"]["size"]
        for key, value in self.settings.items():
            put_override(tree, key, value)
        self.origin.put_start(tree, start)
        return tree
