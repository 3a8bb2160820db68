"""The starting point of a fine-tuning or a semi-supervised training. Torch is not needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ssl_dist.checkpoint import locate
from ssl_dist.config import RunConfig
from ssl_dist.config.overrides import put_override
from ssl_dist.errors import ConfigError, RunError
from ssl_dist.reading import find_recipe, settle, value_at
from ssl_dist.settings import CheckpointChoice


class Origin(NamedTuple):
    """The starting point: a run's checkpoint, or the network of a recipe.

    Attributes:
        name: for tables and the runs' names.
        settings: those that the runs share with it, by section.
        weights: the settings that make training start from its weights; None where it has none.
    """

    name: str
    settings: dict[str, Any]
    weights: dict[str, Any] | None

    @classmethod
    def of(cls, given: str, checkpoint: CheckpointChoice, train: str, overrides: Mapping[str, Any]) -> Origin:
        """Read a run's config, or a recipe.

        Raises:
            RunError, ConfigError, CheckpointError: there is no such run or recipe, or no such checkpoint.
        """
        path, weights = Path(given), dict[str, Any]()
        if path.is_dir():
            if ignored := {"backbone", "backbone.weights", "backbone.checkpoint"} & set(overrides):
                raise ConfigError(
                    f"--set {min(ignored)}: network and weights are those of {given}: give a recipe instead of a run to"
                    " choose others, or --checkpoint for other weights of the run"
                )
            found = locate(path, checkpoint)
            config: RunConfig = found.config
            there = found.path.absolute()
            weights = {"backbone.weights": str(there), "backbone.checkpoint": "newest"}
            name = f"{there.parents[1].name}-{there.name}"
        else:
            try:
                find_recipe(given)
            except ConfigError as error:
                raise RunError(f"{given} is no run directory: {error}") from None
            if checkpoint != "newest":
                raise ConfigError(f"--checkpoint {checkpoint}: {given} is a recipe, which has none: give a run")
            config, name = RunConfig.load(given, {"data.store": train}), path.stem
            network = {"backbone": settle(overrides.get("backbone", {"weights": config.backbone.weights}))}
            if "backbone.weights" in overrides:
                put_override(network, "backbone.weights", overrides["backbone.weights"])
            if file := value_at(network, "backbone.weights"):
                weights = {"backbone.weights": file}
        sections = config.model_dump(include={"backbone", "engine", "cluster"})
        sections["backbone"] |= {"weights": None, "checkpoint": "newest"}
        sections["data"] = config.data.model_dump(include={"cache", "cache_gb"})
        sections["augment"] = {"recipe": "weak", "size_px": max(config.view_sizes, default=None)}
        return cls(name, sections, weights or None)

    def tree(self, store: str) -> dict[str, Any]:
        """Return the shared settings of a run on a store."""
        tree = {section: dict(values) for section, values in self.settings.items()}
        tree["data"]["store"] = store
        return tree

    def put_start(self, tree: dict[str, Any], start: str) -> None:
        """Let a run with these settings start from the given weights ("run"), or from random ones."""
        weights = self.weights if start == "run" else {"backbone.weights": None}
        for key, value in (weights or {}).items():
            put_override(tree, key, value)

    def expect_start(self, starts: Sequence[str]) -> None:
        """Refuse to start from a recipe's weights where the recipe names none.

        Raises:
            ConfigError: the origin is a recipe without any.
        """
        if "run" in starts and self.weights is None:
            raise ConfigError(
                f"--from run: {self.name} is a recipe without backbone.weights: name a file of weights with --set"
                " backbone.weights=FILE, give a run, or choose --from random"
            )
