"""Levels of a run's network whose outputs are features: the backbone, its layers, the head without its last layers.

G-SimCLR (arXiv 2009.12007) calls the backbone P3, the head without its last layer P1, and without its last two P2.
"""

from __future__ import annotations

from collections.abc import Sequence

from ssl_dist.config import ResolvedConfig
from ssl_dist.errors import ConfigError, RunError
from ssl_dist.methods.settings import ProjectionConfig

BACKBONE = "backbone"
HEADS = {"head-1": 1, "head-2": 2}
"""Levels of the projection head, and how many of its last linear layers they leave out."""
ALL = "all"
LAYER = "layer "
"""Beginning of the name of a level that is a layer of the backbone."""


def levels_of(config: ResolvedConfig, features: Sequence[str], layers: Sequence[str] = ()) -> list[str]:
    """Return the levels that ``--features`` and ``--layer`` name, in their order; ``features.Levels`` computes them.

    Args:
        features: names of levels, or ``all``.
        layers: names of parts of the backbone's network, as torch knows them.

    Raises:
        ConfigError: there is no such level or layer.
        RunError: the run's method has no projection head, or too short a one.
    """
    choices = ", ".join((BACKBONE, *HEADS, ALL))
    if not features and not layers:
        raise ConfigError(f"--features names nothing: it is one or more of {choices}, with commas between them")
    for level in features:
        if level not in (BACKBONE, *HEADS, ALL):
            raise ConfigError(f"--features {level}: it is one of {choices}")
    levels = [BACKBONE, *HEADS] if ALL in features else list(dict.fromkeys(features))
    for level in levels:
        if level in HEADS:
            _expect_head(config, level)
    if layers:
        _expect_layers(config, layers)
    return levels + [f"{LAYER}{name}" for name in dict.fromkeys(layers)]


def _expect_head(config: ResolvedConfig, level: str) -> None:
    method, left_out = config.method, HEADS[level]
    if not isinstance(method, ProjectionConfig):
        raise RunError(f"--features {level}: method {method.name} has no projection head: take --features {BACKBONE}")
    if method.projection_layers <= left_out:
        raise RunError(
            f"--features {level} leaves out the last {left_out} linear layers of the projection head, and this run's"
            f" has {method.projection_layers} (method.projection_layers), so nothing of it would be left: take"
            f" --features {' or '.join(levels_that_fit(config))}"
        )


def _expect_layers(config: ResolvedConfig, layers: Sequence[str]) -> None:
    """Refuse what is no part of the network with weights, of those that fine-tuning counts.

    Modules within a part, or without weights, may hold their numbers in another layout than the others.
    """
    backbone = config.method_without_values().backbone
    parts = [name for layer in backbone.layers() for name in layer if [*backbone.get_submodule(name).parameters()]]
    known = [name.removeprefix("body.") for name in parts]
    for name in layers:
        if name not in known:
            there = ", ".join(known)
            raise ConfigError(f"--layer {name}: backbone {config.backbone.name} has no such layer: they are {there}")


def levels_that_fit(config: ResolvedConfig) -> list[str]:
    """Return the backbone and the levels that the run's projection head has."""
    method = config.method
    layers = method.projection_layers if isinstance(method, ProjectionConfig) else 0
    return [BACKBONE, *(level for level, left_out in HEADS.items() if left_out < layers)]
