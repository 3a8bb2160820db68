"""One typed, frozen object for the command line, YAML recipes and sweeps; epochs become steps here, once."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

import pydantic
import torch

from ssl_dist import backbones, methods
from ssl_dist.augment import RECIPES, Recipe, View
from ssl_dist.errors import ConfigError, StoreError
from ssl_dist.methods import Method, MethodConfig
from ssl_dist.optim import OptimConfig
from ssl_dist.overrides import explain, flatten, put_override, read_recipe


class _Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(_Section):
    """``store``: folder of the store to pretrain on; ``label_file``: a .npy of one whole number an image (-1: none), in
    place of its labels; ``stratified``: a batch (its labelled images, where the method sees labels) has as many images
    of each label, or up to two more of one than of another where their number is no multiple of that of labels.

    The rest is filled in when a run starts and checked whenever it goes on: with other images it would be another run.
    """

    store: str
    label_file: str | None = None
    stratified: bool = False
    num_images: int | None = None
    num_samples: int | None = None  # images of an epoch, see ``Samples``
    image_shape: tuple[int, int, int] | None = None
    label_digest: str | None = None

    def expect(self, found: DataConfig) -> None:
        """Refuse a store of other images than the run began with.

        Raises:
            StoreError: their number or size differs.
        """
        for name in ("num_images", "num_samples", "image_shape", "label_digest"):
            began, now = getattr(self, name), getattr(found, name)
            if began is not None and began != now:
                key = "data.label_file" if name == "label_digest" else "data.store"
                raise StoreError(
                    f"{found.store} has {name} {now} where the run began with {began}: set {key} to what it was"
                )


class AugmentConfig(_Section):
    """A recipe of ``augment.RECIPES``; every other key, where given, replaces that setting in all of its views."""

    recipe: str = "simclr"
    size_px: int | None = None
    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] | None = None
    flip_p: float | None = None
    jitter_p: float | None = None
    jitter_strength: float | None = None
    grey_p: float | None = None
    blur_p: float | None = None
    blur_sigma: tuple[float, float] | None = None
    solarise_p: float | None = None
    jitter_saturation: float | None = None

    @pydantic.model_validator(mode="after")
    def _is_a_recipe(self) -> AugmentConfig:
        if self.recipe not in RECIPES:
            raise ValueError(f"augment.recipe {self.recipe!r}: it is one of {', '.join(RECIPES)}")
        self.views()
        return self

    def views(self) -> Recipe:
        """The recipe with the replacements in it."""
        given = self.model_dump(exclude={"recipe"}, exclude_none=True)
        return tuple(View.model_validate({**view.model_dump(), **given}) for view in RECIPES[self.recipe])


class BackboneConfig(_Section):
    """See ``backbones.build``."""

    name: str = "resnet50"
    stem: backbones.Stem = "standard"
    width: int | None = pydantic.Field(None, ge=1)
    dropout: float = pydantic.Field(0.0, ge=0, lt=1)

    def build(self, image_size: int | None = None) -> backbones.Backbone:
        return backbones.build(image_size=image_size, **self.model_dump())

    def check(self, image_sizes: Collection[int]) -> None:
        backbones.check(image_sizes=image_sizes, **self.model_dump())


class BatchConfig(_Section):
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


class EngineConfig(_Section):
    """How a step is computed; none of it changes which model comes out, but for rounding."""

    precision: Literal["fp32", "bf16"] = "bf16"
    zero_stage: Literal[0, 1, 2, 3] = 1


class ProbeConfig(_Section):
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


class CheckpointConfig(_Section):
    """Whole-state checkpoints: how often (one more at the end), how many of the newest are kept, and how many of the
    best by the online probe beside them; ``mirror``: a URI (``s3://bucket/folder``) for copies under the run's name."""

    every_epochs: float = pydantic.Field(1, gt=0)
    keep: int = pydantic.Field(2, ge=1)
    keep_best: int = pydantic.Field(1, ge=0)
    mirror: str | None = None


class MonitorConfig(_Section):
    """How often scalars are written, and which settings TensorBoard's HParams shows (None: all)."""

    every_steps: int = pydantic.Field(10, ge=1)
    hparams: tuple[str, ...] | None = None


class Workers(_Section):
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


class ClusterConfig(_Section):
    """What Ray is asked for. ``workers`` only decides how fast a run is: a number, or ``{min: 1, max: 4}``, with which
    a run goes on from its newest checkpoint with as many as there is room for, whenever one is lost or a node joins."""

    workers: Workers = Workers()
    cpus_per_worker: float = pydantic.Field(1, gt=0)
    gpu: bool = False
    max_failures: int = pydantic.Field(3, ge=0)  # restarts of the worker group before the run gives up
    resize_every_s: float = pydantic.Field(60, gt=0)  # how often elastic workers look for more room
    dashboard_port: int | None = pydantic.Field(None, ge=1, le=65535)  # of the Ray started here; None: no dashboard


class Plan(_Section):
    """A run in steps."""

    num_samples: int
    total_steps: int
    warmup_steps: int
    steps_per_epoch: float

    def is_time(self, step: int, every_epochs: float) -> bool:
        """Has training just crossed a multiple of ``every_epochs``, after ``step`` steps, or ended?"""
        every = every_epochs * self.steps_per_epoch
        return step == self.total_steps or math.floor(step / every) > math.floor((step - 1) / every)


class RunConfig(_Section):
    """Everything that decides a run. ``load`` makes one from a recipe and dotted overrides."""

    seed: int = pydantic.Field(0, ge=0, lt=2**63)
    epochs: float = pydantic.Field(100, gt=0)
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    backbone: BackboneConfig = BackboneConfig()
    method: pydantic.SerializeAsAny[MethodConfig] = methods.load("simclr").Config(name="simclr")
    batch: BatchConfig = BatchConfig()
    optim: OptimConfig = OptimConfig()
    engine: EngineConfig = EngineConfig()
    probe: ProbeConfig | None = ProbeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    monitor: MonitorConfig = MonitorConfig()
    cluster: ClusterConfig = ClusterConfig()

    @pydantic.field_validator("method", mode="before")
    @classmethod
    def _choose_method(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return methods.load(value.get("name", "simclr")).Config.model_validate({"name": "simclr", **value})
        return value

    @pydantic.model_validator(mode="after")
    def _possible(self) -> RunConfig:
        self.backbone.check(self.view_sizes)
        if self.optim.name == "lars" and self.engine.zero_stage == 3:
            raise ValueError(
                "optim.name lars with engine.zero_stage 3: LARS needs the norms of whole parameters,"
                " which stage 3 cuts up for good: set engine.zero_stage to 0, 1 or 2"
            )
        method = methods.load(self.method.name)
        if method.needs_map and self.backbone.name not in backbones.with_map():
            raise ValueError(
                f"method {self.method.name} decodes the backbone's map, which backbone {self.backbone.name} does not"
                f" give: set backbone.name to one of {', '.join(backbones.with_map())}"
            )
        some = method.uses_labels == "some"
        if some and not 0 < self.batch.labelled < self.batch.size:
            raise ValueError(
                f"batch.labelled {self.batch.labelled}: method {self.method.name} learns from some labelled images of"
                f" each batch, so it is 1 or more, and less than batch.size {self.batch.size}"
            )
        if self.batch.labelled and not some:
            raise ValueError(f"batch.labelled {self.batch.labelled}: method {self.method.name} takes none by label")
        return self

    @property
    def view_sizes(self) -> tuple[int, ...]:
        """Pixels a side of each view; none of views of the stored size, as long as no store was opened."""
        stored = self.data.image_shape[0] if self.data.image_shape else None
        return tuple(size for view in self.augment.views() if (size := view.size_px or stored))

    @property
    def num_labelled(self) -> int:
        """Images of a step whose labels the method sees."""
        every = methods.load(self.method.name).uses_labels == "all"
        return self.batch.size if every else self.batch.labelled

    @classmethod
    def load(cls, path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> RunConfig:
        """Read a recipe and put overrides over it.

        Args:
            path: a YAML file, or the name of a recipe that comes with the package (``simclr-cifar10``).
            overrides: dotted key -> value, e.g. ``{"optim.lr": 0.3}``; a section may be given whole as a mapping.

        Raises:
            ConfigError: no such recipe, a key that does not exist (with its nearest neighbour), a value out of range.
        """
        tree = read_recipe(path)
        for key, value in (overrides or {}).items():
            put_override(tree, key, value)
        return cls.from_tree(tree, str(path))

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any], origin: str) -> RunConfig:
        """Validate a nested mapping; ``origin`` says in messages where it came from."""
        try:
            return cls.model_validate(tree)
        except pydantic.ValidationError as error:
            method = tree.get("method")
            name = method.get("name") if isinstance(method, Mapping) else None
            known = _known_keys(cls, "", name if name in methods.names() else "simclr")
            raise ConfigError(f"{origin}: {explain(error, list(known))}") from None

    def plan(self, num_samples: int) -> Plan:
        """Epochs of ``num_samples`` images (``Samples.count``) to steps; what does not fill a last batch is left out.

        Raises:
            ConfigError: less than one step.
        """
        batch = self.batch.size - self.batch.labelled
        steps_per_epoch = num_samples / batch
        total = math.floor(self.epochs * num_samples / batch)
        if total < 1:
            raise ConfigError(
                f"epochs {self.epochs:g} of {num_samples} images are less than one batch of {batch}:"
                f" raise epochs to {batch / num_samples:g} or more, or lower batch.size"
            )
        warmup = min(round(self.optim.warmup_epochs * steps_per_epoch), total)
        return Plan(num_samples=num_samples, total_steps=total, warmup_steps=warmup, steps_per_epoch=steps_per_epoch)

    def initial_method(self) -> Method:
        """The method with the weights that a run starts from, the same wherever it is called."""
        torch.manual_seed(self.seed)
        backbone = self.backbone.build(next(iter(self.view_sizes), None))
        return methods.load(self.method.name)(backbone, self.method)

    def flat(self) -> dict[str, Any]:
        """Dotted key -> value, for hyperparameter tables."""
        return dict(flatten(self.model_dump(mode="json")))

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of the whole config: two runs that differ in anything differ in it."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _known_keys(model: type[pydantic.BaseModel], prefix: str, method: str) -> Iterator[str]:
    for name, info in model.model_fields.items():
        yield f"{prefix}{name}"
        kinds = (info.annotation, *getattr(info.annotation, "__args__", ()))
        for kind in kinds if name != "method" else (methods.load(method).Config,):
            if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
                yield from _known_keys(kind, f"{prefix}{name}.", method)
