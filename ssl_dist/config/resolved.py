"""Resolved config: the settings of a run with the facts about its data, from which follows its length in steps."""

from __future__ import annotations

import decimal
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import pydantic

from ssl_dist.config.run import FACTS_IN_SECTIONS, RunConfig
from ssl_dist.errors import ConfigError, StoreError
from ssl_dist.reading import exact
from ssl_dist.settings import Section
from ssl_dist.uris import without_secrets

# Facts that runs of older versions do not have, and what differs where one differs.
DIGESTS_OF_STORE = {
    "store_digest": "other images, of the same number and size,",
    "store_labels_digest": "other labels",
}

_OF_FOREIGN_NETWORKS: dict[str, Any] = {"options": {}, "allow_missing": [], "position_embeddings": "same"}

# Settings that older versions did not have, and their defaults, which leave a run what it was.
_LATER_SETTINGS: dict[str, dict[str, Any]] = {
    "data": {"validation_digest": None},
    "augment": {"start_px": None, "start_share": None},
    "backbone": {"checkpoint": "newest", "normalisation": None, **_OF_FOREIGN_NETWORKS},
    "method": {"unfreeze": "all", "anew": False, "hidden": None},
    "batch": {"keep_graphs": "auto"},
    "engine": {"memory_format": "auto", "compile": "off", "deterministic": False},
    "optim": {"layer_decay": 1.0, "plateau_factor": 0.1, "plateau_patience": 3},
    "probe": {"label_file": None, "patience": None},
    "monitor": {"projector": None, "also": [], "profile_steps": 0},
}


class DataFacts(Section):
    """Facts about a run's data and initial weights: found when the run starts, and checked whenever it resumes."""

    num_images: int
    """Images in the store."""
    num_samples: int
    """Images of an epoch, see ``data.SamplePlan``."""
    image_shape: tuple[int, int, int]
    """Height, width and channels of the stored images."""
    label_digest: str | None = None
    """Digest of ``data.label_file``; None where the labels are the store's."""
    validation_digest: str | None = None
    """Digest of ``probe.label_file``; None where there is none."""
    shards_digest: str | None = None
    """Digest of the shards' sizes, on which ``data.order`` shards depends; None for the order full."""
    weights_digest: str | None = None
    """Digest of the file ``backbone.weights``; None where training starts from random weights."""
    store_digest: str | None = None
    """Digest of the checksums of the store's record batches; None in runs of versions that did not note it."""
    store_labels_digest: str | None = None
    """Digest of the store's labels; None where the run does not learn from them, and as above."""


class Plan(Section):
    """The length of a run in steps; ``images_per_step`` images of an epoch's ``num_samples`` are used in a step."""

    num_samples: int
    images_per_step: int
    total_steps: int
    warmup_steps: int

    @property
    def steps_per_epoch(self) -> float:
        return self.num_samples / self.images_per_step

    def periods(self, step: int, every_epochs: float) -> int:
        """Return how many times ``every_epochs`` have passed after ``step`` steps, without a rounding error."""
        return math.floor(step * self.images_per_step / (exact(every_epochs) * self.num_samples))

    def is_time(self, step: int, every_epochs: float) -> bool:
        """Tell whether training has just crossed a multiple of ``every_epochs``, after ``step`` steps, or ended."""
        return step == self.total_steps or self.periods(step, every_epochs) > self.periods(step - 1, every_epochs)


class ResolvedConfig(RunConfig):
    """The settings of a run and the facts about its data, which together decide which model is trained.

    ``data.resolve`` makes one, with absolute paths. Files of older versions, which have the facts among the settings,
    are read as well.
    """

    facts: DataFacts

    @pydantic.model_validator(mode="after")
    def _expect_classes(self) -> ResolvedConfig:
        if getattr(self.method, "num_classes", 0) is None:
            raise ValueError(f"method.num_classes is missing: set the number of classes of method {self.method.name}")
        return self

    @property
    def _stored_px(self) -> int:
        return self.facts.image_shape[0]

    def expect_same_data(self, found: ResolvedConfig) -> None:
        """Refuse other images, or other labels, than the run began with.

        Args:
            found: the config as it was resolved now.

        Raises:
            StoreError: number, size or content of the images differs, or a label that the run learns from, or (with
                ``order: shards``) how they are cut into shards.
        """
        store = without_secrets(found.data.store)
        for name in FACTS_IN_SECTIONS["data"]:
            began, now = getattr(self.facts, name), getattr(found.facts, name)
            if began != now:
                files = {"label_digest": "data.label_file", "validation_digest": "probe.label_file"}
                key = files.get(name, "data.store")
                raise StoreError(f"{store} has {name} {now} where the run began with {began}: set {key} to what it was")
        for name, other in DIGESTS_OF_STORE.items():
            began, now = getattr(self.facts, name), getattr(found.facts, name)
            if began != now and None not in (began, now):
                raise StoreError(
                    f"{store} has {other} than the run began with: set data.store to the store that it began with, or"
                    " to a copy of it; to train on this one, start a new run"
                )

    def plan(self) -> Plan:
        """Convert epochs into steps, exactly as they were written; samples that do not fill a last batch are left out.

        Raises:
            ConfigError: the run has less than one step.
        """
        num_samples, batch = self.facts.num_samples, self.batch.size - self.batch.labelled
        total = math.floor(exact(self.epochs) * num_samples / batch)
        if total < 1:
            enough = decimal.Context(prec=4, rounding=decimal.ROUND_CEILING).divide(batch, num_samples)
            raise ConfigError(
                f"epochs {self.epochs:g} of {num_samples} images are less than one batch of {batch}:"
                f" raise epochs to {enough:f} or more, or lower batch.size"
            )
        warmup = min(round(exact(self.optim.warmup_epochs) * num_samples / batch), total)
        return Plan(num_samples=num_samples, images_per_step=batch, total_steps=total, warmup_steps=warmup)

    def with_steps(self, steps: int) -> ResolvedConfig:
        """Return the settings of a run of so many steps on the same data: its epochs are as many as that takes."""
        images = steps * (self.batch.size - self.batch.labelled)
        return self.model_copy(update={"epochs": images / self.facts.num_samples})

    @property
    def small_steps(self) -> int:
        """Number of the first steps, whose views have the side ``augment.start_px``."""
        total = self.plan().total_steps
        return sum(self.augment.is_small(step / total) for step in range(total))

    def is_over(self, step: int, losses: Sequence[float]) -> bool:
        """Tell whether the run ends after ``step`` steps, with these validation losses so far."""
        return step >= self.plan().total_steps or (self.probe is not None and self.probe.gives_up(losses))

    def rates(self, stop: int) -> Iterator[float]:
        """Yield the learning rates of the steps 0 .. stop - 1."""
        plan, size = self.plan(), self.batch.size
        for step in range(stop):
            yield self.optim.learning_rate(
                step, batch_size=size, warmup_steps=plan.warmup_steps, total_steps=plan.total_steps
            )

    def fingerprint(self) -> str:
        """Return twelve hexadecimal digits that differ between any two runs that differ.

        They name the directories of a sweep's trials, so they are taken from the layout that config.json had when facts
        were still written into its sections.
        """
        tree = self.model_dump(mode="json")
        facts = tree.pop("facts")
        for section, keys in FACTS_IN_SECTIONS.items():
            tree[section] |= {key: facts[key] for key in keys}
        tree["data"] |= {key: facts[key] for key in DIGESTS_OF_STORE if facts[key] is not None}
        for section, later in _LATER_SETTINGS.items():
            for key, default in later.items():
                if tree[section] and tree[section].get(key, ...) == default:
                    del tree[section][key]
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]
