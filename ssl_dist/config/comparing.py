"""A run's settings beside a recipe's: what differs, and the command that says it."""

from __future__ import annotations

import functools
import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ssl_dist.config.run import RunConfig
from ssl_dist.reading import RECIPE_FOLDER
from ssl_dist.uris import is_remote, without_secrets

_PATHS = ("data.store", "data.label_file", "probe.label_file")
"""Settings that a recipe may have as paths in the current folder, and that a run notes as absolute paths."""


class Difference(NamedTuple):
    """A setting by its dotted key, or a section of which one side has none: its value in the recipe, and in the run."""

    key: str
    before: Any
    now: Any

    @property
    def is_of_place(self) -> bool:
        """Whether it is a relative path in the recipe, and in the run an absolute path that ends with it."""
        if self.key not in _PATHS or not (self.before and self.now) or is_remote(self.before) or is_remote(self.now):
            return False
        first, last = Path(self.before), Path(self.now)
        return not first.is_absolute() and last.is_absolute() and last.parts[-len(first.parts) :] == first.parts


class Base(NamedTuple):
    """A recipe that comes with the package, and the settings in which a run differs from it."""

    recipe: str
    differences: Sequence[Difference]

    @property
    def told(self) -> Sequence[Difference]:
        """The differences that tell something: not those of the folder in which a path lies."""
        return [one for one in self.differences if not one.is_of_place]

    @property
    def command(self) -> str:
        """The command that trains with the run's settings."""
        options = (f"--set {shlex.quote(f'{one.key}={as_written(one.now)}')}" for one in self.differences)
        return " ".join([f"ssl-dist pretrain {self.recipe}", *options])


def base_of(config: RunConfig, recipe: str = "") -> Base | None:
    """Compare a run's settings with the recipe that it came from, or with the one of the package that is most like it.

    Args:
        recipe: name of the recipe that the run came from; one that the package does not have counts as not known.

    Returns:
        None where no recipe of the package has the run's method.
    """
    found = list[Base]()
    for name, one in _recipes().items():
        if name == recipe:
            return Base(recipe, differences(one, config))
        if one.method.name == config.method.name:
            found.append(Base(name, differences(one, config)))
    return min(found, key=lambda base: len(base.differences), default=None)


@functools.cache
def _recipes() -> dict[str, RunConfig]:
    return {file.stem: RunConfig.load(file.stem) for file in sorted(RECIPE_FOLDER.glob("*.yaml"))}


def differences(before: RunConfig, now: RunConfig) -> list[Difference]:
    """List the settings ``section.name`` in which two configs differ, in their order, without facts and URIs' keys.

    What is inside of one, such as the two ends of a range, stays together. So does a section that only one of them has,
    and that of another method.
    """
    found = list[Difference]()
    was, is_ = _plain(before), _plain(now)
    for section, old in was.items():
        new = is_[section]
        if not (isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys()):
            pairs = {section: (old, new)}
        else:
            pairs = {f"{section}.{key}": (old[key], new[key]) for key in old}
        found += [Difference(key, *pair) for key, pair in pairs.items() if pair[0] != pair[1]]
    return found


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Return all settings by ``section.name``, as ``differences`` names them, without facts and URIs' keys."""
    found = dict[str, Any]()
    for section, value in _plain(config).items():
        is_section = isinstance(value, dict)
        found |= {f"{section}.{key}": inner for key, inner in value.items()} if is_section else {section: value}
    return found


def as_written(value: Any) -> str:
    """Return a setting's value as ``--set`` takes it."""
    if isinstance(value, (dict, list)):
        return str(
            yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf)
        ).strip()
    return value if isinstance(value, str) else json.dumps(value).removesuffix(".0")


def as_recipe(config: RunConfig) -> str:
    """Return all settings as a recipe, without the keys that URIs hold."""
    return str(yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True))


def _plain(config: RunConfig) -> dict[str, Any]:
    found: dict[str, Any] = _without_keys(config.model_dump(mode="json", exclude={"facts"}))
    return found


def _without_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_keys(inner) for key, inner in value.items()}
    return without_secrets(value) if isinstance(value, str) else value
