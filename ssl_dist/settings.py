"""The sections of a run's settings, each with what makes sense within itself."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Literal

import pydantic

from ssl_dist import backbones
from ssl_dist.augment import OPERATIONS, POLICIES, Policy, View, with_only
from ssl_dist.store.remote import DEFAULT_CACHE_GB


class Section(pydantic.BaseModel):
    """Frozen; a key that it does not have is an error."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(Section):
    """``store``: folder of the store to pretrain on, or its URI (``s3://bucket/store``); ``label_file``: a .npy of one
    whole number an image (-1: none), in place of its labels; ``stratified``: a batch (its labelled images, where the
    method sees labels) has as many images of each label, or up to two more of one than of another where their number is
    no multiple of that of labels; ``damaged``: "refuse" to go on where a record batch of the store differs from its
    checksum, or "skip" its images (of a folder, not of a URI).

    ``order``: "full", a permutation of all images, or "shards", for stores larger than the cache: of shards, and of the
    images in windows of about ``window`` images (``order.Windows``). ``cache``: folder of this machine for shards of
    stores elsewhere (None: in the user's cache directory), of at most ``cache_gb`` GB: two windows should fit.

    What a run finds out about the store is not here, but in ``config.DataFacts``.
    """

    store: str
    label_file: str | None = None
    stratified: bool = False
    damaged: Literal["refuse", "skip"] = "refuse"
    order: Literal["full", "shards"] = "full"
    window: int = pydantic.Field(2**18, ge=1)
    cache: str | None = None
    cache_gb: float = pydantic.Field(DEFAULT_CACHE_GB, gt=0, le=1e6)

    @pydantic.model_validator(mode="after")
    def _possible(self) -> DataConfig:
        if self.stratified and self.order == "shards":
            raise ValueError(
                "data.stratified with data.order shards: a batch with images of each label needs them from anywhere in"
                " the store, not from a window of it: set data.order=full or data.stratified=false"
            )
        return self


class AugmentConfig(Section):
    """A recipe of ``augment.POLICIES``; every other key, where given, replaces that setting in all of its views.
    ``only``: names of ``augment.OPERATIONS``, the others are off (an empty list: whole images, resized)."""

    recipe: str = "simclr"
    only: tuple[str, ...] | None = None
    size_px: int | None = None
    crop_p: float | None = None
    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] | None = None
    flip_p: float | None = None
    rotation_p: float | None = None
    jitter_p: float | None = None
    jitter_strength: float | None = None
    grey_p: float | None = None
    blur_p: float | None = None
    blur_sigma: tuple[float, float] | None = None
    solarise_p: float | None = None
    jitter_saturation: float | None = None

    @pydantic.field_validator("only")
    @classmethod
    def _in_one_order(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        unknown = sorted(set(names or ()) - set(OPERATIONS))
        if unknown:
            raise ValueError(f"augment.only {', '.join(map(repr, unknown))}: each is one of {', '.join(OPERATIONS)}")
        return None if names is None else tuple(name for name in OPERATIONS if name in names)

    @pydantic.model_validator(mode="after")
    def _is_a_recipe(self) -> AugmentConfig:
        if self.recipe not in POLICIES:
            raise ValueError(f"augment.recipe {self.recipe!r}: it is one of {', '.join(POLICIES)}")
        for name in self.only or ():
            key, usual = OPERATIONS[name]
            if getattr(self, key) == 0:
                raise ValueError(f"augment.only names {name} and augment.{key} is 0: leave one out, or try {usual}")
        self.views()
        return self

    def views(self) -> Policy:
        """The recipe with the replacements in it."""
        given = self.model_dump(exclude={"recipe", "only"}, exclude_none=True)
        views = tuple(View.model_validate({**view.model_dump(), **given}) for view in POLICIES[self.recipe])
        return views if self.only is None else with_only(views, self.only)


class BackboneConfig(Section):
    """See ``backbones.build``. ``weights``: what training starts from in place of random ones: the directory of a run
    (its newest checkpoint) or of a checkpoint, or a .safetensors file."""

    name: str = "resnet50"
    stem: backbones.Stem = "standard"
    width: int | None = pydantic.Field(None, ge=1)
    dropout: float = pydantic.Field(0.0, ge=0, lt=1)
    weights: str | None = None

    def build(self, image_size: int | None = None) -> backbones.Backbone:
        """With random weights."""
        return backbones.build(image_size=image_size, **self._shape())

    def check(self, image_sizes: Collection[int]) -> None:
        backbones.check(image_sizes=image_sizes, **self._shape())

    def _shape(self) -> dict[str, Any]:
        return self.model_dump(exclude={"weights"})


class BatchConfig(Section):
    """``size`` images make a step; they are embedded ``micro`` at a time, each with its own BatchNorm statistics.
    ``labelled`` of them come from the labelled ones, for methods that learn from some labels."""

    size: int = pydantic.Field(256, ge=2)
    micro: int = pydantic.Field(256, ge=1)
    labelled: int = pydantic.Field(0, ge=0)

    @pydantic.model_validator(mode="after")
    def _divides(self) -> BatchConfig:
        if self.size % self.micro:
            size, micro = self.size - self.size % self.micro, math.gcd(self.size, self.micro)
            tries = ([f"batch.size={size}"] if size else []) + [f"batch.micro={micro}"]
            raise ValueError(
                f"batch.size {self.size} is not a multiple of batch.micro {self.micro}: try {' or '.join(tries)}"
            )
        if self.labelled * self.micro % self.size:
            raise ValueError(
                f"batch.labelled {self.labelled}: each of {self.num_micro} micro-batches takes as many, so it is a"
                f" multiple of {self.num_micro}"
            )
        return self

    @property
    def num_micro(self) -> int:
        return self.size // self.micro


class EngineConfig(Section):
    """How a step is computed; none of it changes which model comes out, but for rounding."""

    precision: Literal["fp32", "bf16"] = "bf16"
    zero_stage: Literal[0, 1, 2, 3] = 1


class ProbeConfig(Section):
    """What is measured while training goes on. ``knn`` and ``linear``: ``queries`` labelled images of the pretraining
    store are classified by ``bank`` others. ``rankme`` and ``lidar``: effective rank of ``bank`` images, no labels."""

    kind: Literal["knn", "linear", "rankme", "lidar"] = "knn"
    every_epochs: float = pydantic.Field(1, gt=0)
    bank: int = pydantic.Field(4096, ge=1)
    queries: int = pydantic.Field(1024, ge=1)
    k: int = pydantic.Field(20, ge=1)  # knn

    @property
    def tag(self) -> str:
        """Of its values among a run's numbers."""
        return f"probe/{self.kind}"


class CheckpointConfig(Section):
    """Whole-state checkpoints: how often (one more at the end), how many of the newest are kept, and how many of the
    best by the online probe beside them; ``mirror``: a URI (``s3://bucket/folder``) for copies under the run's name."""

    every_epochs: float = pydantic.Field(1, gt=0)
    keep: int = pydantic.Field(2, ge=1)
    keep_best: int = pydantic.Field(1, ge=0)
    mirror: str | None = None


class MonitorConfig(Section):
    """How often scalars are written, and which settings TensorBoard's HParams shows (None: all)."""

    every_steps: int = pydantic.Field(10, ge=1)
    hparams: tuple[str, ...] | None = None


class Workers(Section):
    """How many; in recipes a plain number is both."""

    min: int = pydantic.Field(1, ge=1)
    max: int = pydantic.Field(1, ge=1)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _number_is_both(cls, value: Any) -> Any:
        return value if isinstance(value, (Mapping, Workers)) else {"min": value, "max": value}

    @pydantic.model_validator(mode="after")
    def _is_a_range(self) -> Workers:
        if self.max < self.min:
            raise ValueError(f"cluster.workers {{min: {self.min}, max: {self.max}}}: max must not be below min")
        return self


class ClusterConfig(Section):
    """What Ray is asked for. ``workers`` only decides how fast a run is: a number, or ``{min: 1, max: 4}``, with which
    a run goes on from its newest checkpoint with as many as there is room for, whenever one is lost or a node joins."""

    workers: Workers = Workers()
    cpus_per_worker: float = pydantic.Field(1, gt=0)
    gpu: bool = False
    max_failures: int = pydantic.Field(3, ge=0)  # restarts of the worker group before the run gives up
    resize_every_s: float = pydantic.Field(60, gt=0)  # how often elastic workers look for more room
    dashboard_port: int | None = pydantic.Field(None, ge=1, le=65535)  # of the Ray started here; None: no dashboard
