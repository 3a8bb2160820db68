"""All settings of a run as one typed, frozen object, which the command line, YAML recipes and sweeps share."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

import pydantic
import yaml

from ssl_dist import backbones, methods, settings
from ssl_dist.augment import POLICIES
from ssl_dist.config.overrides import explain, flatten, put_override, read_recipe
from ssl_dist.errors import ConfigError
from ssl_dist.optim import OptimConfig
from ssl_dist.reading import settle

if TYPE_CHECKING:
    import torch

# Facts (see ``resolved.DataFacts``) that older versions wrote into these sections of config.json.
FACTS_IN_SECTIONS = {
    "data": ("num_images", "num_samples", "image_shape", "label_digest", "shards_digest", "validation_digest"),
    "backbone": ("weights_digest",),
}


class RunConfig(settings.Section):
    """All settings of a run. ``load`` makes one from a recipe and dotted overrides."""

    seed: int = pydantic.Field(0, ge=0, lt=2**63)
    """Seed of everything random: weights, order of images, augmentation, dropout."""
    epochs: float = pydantic.Field(100, gt=0)
    """Length of the run in epochs; parts of an epoch are possible."""
    data: settings.DataConfig
    augment: settings.AugmentConfig = settings.AugmentConfig()
    backbone: settings.BackboneConfig = settings.BackboneConfig()
    method: pydantic.SerializeAsAny[methods.MethodConfig] = methods.config_of("simclr")(name="simclr")
    batch: settings.BatchConfig = settings.BatchConfig()
    optim: OptimConfig = OptimConfig()
    engine: settings.EngineConfig = settings.EngineConfig()
    probe: settings.ProbeConfig | None = settings.ProbeConfig()
    """The online probe: a measure of the encoder while training continues; `None`: no probe."""
    checkpoint: settings.CheckpointConfig = settings.CheckpointConfig()
    monitor: settings.MonitorConfig = settings.MonitorConfig()
    cluster: settings.ClusterConfig = settings.ClusterConfig()

    @pydantic.model_validator(mode="before")
    @classmethod
    def _separate_facts(cls, tree: Any) -> Any:
        """Take the facts of a resolved run out of the settings, so that its config.json can serve as a recipe."""
        if not isinstance(tree, Mapping):
            return tree
        given, facts = {key: value for key, value in tree.items() if key != "facts"}, dict[str, Any]()
        for section, keys in FACTS_IN_SECTIONS.items():
            if isinstance(values := tree.get(section), Mapping):
                facts |= {key: values[key] for key in keys if values.get(key) is not None}
                given[section] = {key: value for key, value in values.items() if key not in keys}
        return {**given, "facts": tree.get("facts", facts)} if "facts" in cls.model_fields else given

    @pydantic.field_validator("method", mode="before")
    @classmethod
    def _choose_method(cls, value: Any) -> Any:
        value = settle(value, methods.MethodConfig)
        if isinstance(value, Mapping):
            return methods.config_of(value.get("name", "simclr")).model_validate({"name": "simclr", **value})
        return value

    @pydantic.model_validator(mode="after")
    def _check_combination(self) -> RunConfig:
        self._expect_growth()
        self.backbone.check((*self._start_sizes, *self.view_sizes))
        if self.optim.name == "lars" and self.engine.zero_stage == 3:
            raise ValueError(
                "optim.name lars with engine.zero_stage 3: LARS needs the norms of whole parameters,"
                " which stage 3 cuts up for good: set engine.zero_stage to 0, 1 or 2"
            )
        if self.engine.compile != "off" and self.engine.zero_stage == 3:
            raise ValueError(
                f"engine.compile {self.engine.compile} with engine.zero_stage 3, which gathers each layer's weights in"
                " the middle of the pass: set engine.compile to off, or engine.zero_stage to 0, 1 or 2"
            )
        self._expect_labelled()
        self._expect_validation()
        self._expect_views()
        self._expect_map()
        self.method.check(self.epochs, self.batch)
        return self

    def _expect_growth(self) -> None:
        start_px, last_px = self.augment.start_px, min(self.view_sizes, default=None)
        if start_px is not None and last_px is not None and start_px >= last_px:
            raise ValueError(
                f"augment.start_px {start_px}: views have {last_px} px later, and are smaller at first: set it below"
                f" {last_px}, or leave it out"
            )

    def _expect_labelled(self) -> None:
        some = self.method.uses_labels == "some"
        if some and not 0 < self.batch.labelled < self.batch.size:
            raise ValueError(
                f"batch.labelled {self.batch.labelled}: method {self.method.name} learns from some labelled images of"
                f" each batch, so it is 1 or more, and less than batch.size {self.batch.size}"
            )
        if self.batch.labelled and not some:
            raise ValueError(
                f"batch.labelled {self.batch.labelled}: method {self.method.name} does not learn from some labelled"
                " images of a batch: set batch.labelled=0"
            )

    def _expect_validation(self) -> None:
        validated = self.probe is not None and self.probe.kind == "validation"
        if validated and "num_classes" not in type(self.method).model_fields:
            raise ValueError(f"probe.kind validation: method {self.method.name} has no classifier to validate")
        if self.optim.schedule == "plateau" and not validated:
            raise ValueError("optim.schedule plateau follows the validation loss: set probe.kind to validation")

    def _expect_views(self) -> None:
        method, name = self.method, self.method.name
        if self.batch.micro < method.least_micro:
            raise ValueError(
                f"batch.micro {self.batch.micro}: method {name} needs {method.least_micro} images for BatchNorm's"
                f" statistics: set batch.micro to {method.least_micro} or more"
            )
        if not method.takes(self.augment.views()):
            fewest, most = method.num_views
            takes = f"{fewest} views" if fewest == most else f"{fewest} views or more"
            fitting = ", ".join(recipe for recipe, views in POLICIES.items() if method.takes(views))
            raise ValueError(
                f"augment.recipe {self.augment.recipe} makes {len(self.augment.views())} views: method {name} takes"
                f" {takes}{'' if method.multi_crop else ', of one size'}; set augment.recipe to one of {fitting}"
            )

    def _expect_map(self) -> None:
        name, known = self.backbone.name, backbones.with_map()
        if not self.method.needs_map:
            return
        if name not in known:
            raise ValueError(
                f"method {self.method.name} decodes the backbone's map, which backbone {name} does not give: set"
                f" backbone.name to one of {', '.join(known)}"
            )
        stride = backbones.map_stride(name, self.backbone.stem)
        for key, sizes in (("size_px", self.view_sizes), ("start_px", self._start_sizes)):
            if wrong := [size for size in sizes if size % stride]:
                raise ValueError(
                    f"method {self.method.name} with backbone {name} needs views whose side is a multiple of {stride}"
                    f" px, and one has {wrong[0]} px: set augment.{key} to {max(1, wrong[0] // stride) * stride}"
                )

    @property
    def view_sizes(self) -> tuple[int, ...]:
        """Pixels a side of each view, without those of the stored size where that is not known.

        Views are smaller in the first part of a run with ``augment.start_px``.
        """
        return tuple(size for view in self.augment.views() if (size := view.size_px or self._stored_px))

    @property
    def _start_sizes(self) -> tuple[int, ...]:
        """Pixels a side of a view in the first part of the run, if it is another than later."""
        return () if self.augment.start_px is None else (self.augment.start_px,)

    @property
    def _stored_px(self) -> int | None:
        """Pixels a side of the store's images, known once the store was opened."""
        return None

    @property
    def num_labelled(self) -> int:
        """Number of images of a step whose labels the method sees."""
        every = self.method.uses_labels == "all"
        return self.batch.size if every else self.batch.labelled

    @classmethod
    def load(cls, path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> Self:
        """Read a recipe and apply overrides to it.

        Args:
            path: a YAML file, or the name of a recipe that comes with the package (``simclr-cifar10``).
            overrides: dotted key -> value, e.g. ``{"optim.lr": 0.3}``; a section may be given whole as a mapping.

        Raises:
            ConfigError: no such recipe, a key that does not exist (with its nearest neighbour), a value out of range.
        """
        tree = read_recipe(path)
        given = overrides or {}
        for key, value in given.items():
            put_override(tree, key, value)
        try:
            return cls.from_tree(tree, str(path))
        except ConfigError as error:
            text = str(error).removeprefix(f"{path}: ")
            mine = next((key for key in given if re.match(rf"(unknown key )?{re.escape(key)}\b", text)), None)
            raise ConfigError(
                f"{path}: {text}" if mine is None else f"--set {mine}: {text.removeprefix(f'{mine}: ')}"
            ) from None

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any], origin: str) -> Self:
        """Validate a nested mapping; messages begin with ``origin``, which names its source.

        Raises:
            ConfigError: an unknown key, or a value out of range.
        """
        try:
            return cls.model_validate(tree)
        except pydantic.ValidationError as error:
            method = tree.get("method")
            name = method.get("name") if isinstance(method, Mapping) else None
            known = _known_keys(cls, "", name if name in methods.names() else "simclr")
            raise ConfigError(f"{origin}: {explain(error, list(known))}") from None

    def initial_backbone(self) -> backbones.Backbone:
        """Build the backbone with random weights, which depend on the seed alone."""
        import torch

        torch.manual_seed(self.seed)
        return self.backbone.build(max(self.view_sizes, default=None), self.view_sizes)

    def initial_method(self, weights: Mapping[str, torch.Tensor] | None = None) -> methods.Method:
        """Build the method with random weights, which depend on the seed alone.

        Args:
            weights: tensors of the backbone that replace its random ones.
        """
        kind, backbone = methods.load(self.method.name), self.initial_backbone()
        if weights:
            random, anew = backbone.state_dict(), kind.made_anew(backbone, self.method)
            backbone.load_state_dict({name: random[name] if name in anew else weights[name] for name in weights})
        return kind(backbone, self.method)

    def method_without_values(self) -> methods.Method:
        """Build the method with weights that have shapes but no values.

        Raises:
            ConfigError: a tensor would be larger than torch can count.
        """
        try:
            with backbones.WithoutValues():
                return self.initial_method()
        except (RuntimeError, TypeError) as error:
            if "verflow" not in str(error):
                raise
            reason = str(error).splitlines()[0]
            network = f"backbone {self.backbone.name} with method {self.method.name}"
            raise ConfigError(f"{network}: a layer is too large: {reason}") from None

    def to_yaml(self) -> str:
        """Return all settings as a recipe."""
        return str(yaml.safe_dump(self.model_dump(mode="json", exclude={"facts"}), sort_keys=False))

    def flat(self) -> dict[str, Any]:
        """Return all values by dotted key, for tables of hyperparameters."""
        return dict(flatten(self.model_dump(mode="json")))


def _known_keys(model: type[pydantic.BaseModel], prefix: str, method: str) -> Iterator[str]:
    """Yield all dotted keys of a config with this method."""
    for name, info in model.model_fields.items():
        yield f"{prefix}{name}"
        kinds = (info.annotation, *getattr(info.annotation, "__args__", ()))
        for kind in kinds if name != "method" else (methods.config_of(method),):
            if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
                yield from _known_keys(kind, f"{prefix}{name}.", method)
