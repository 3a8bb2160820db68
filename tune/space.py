"""The search space of a sweep: dotted config keys, each with a domain of values; samples are drawn from it."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pydantic

from ssl_dist.config import ResolvedConfig
from ssl_dist.config.overrides import explain, put_override
from ssl_dist.errors import ConfigError, printable
from ssl_dist.reading import read_file, settle

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Sample = dict[str, Any]  # dotted key -> value
Interval = tuple[float, float]


class Domain(pydantic.BaseModel):
    """The values that one setting can take: exactly one of the four fields is given.

    Attributes:
        choice: the values themselves: numbers, text, lists, or whole sections; in YAML, a plain list is a choice.
        uniform, log_uniform: two bounds.
        powers_of_two: two bounds, which may be powers themselves.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    choice: Annotated[tuple[pydantic.JsonValue, ...], pydantic.Field(min_length=1)] | None = None
    uniform: Interval | None = None
    log_uniform: Interval | None = None
    powers_of_two: tuple[int, int] | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _list_is_a_choice(cls, value: Any) -> Any:
        if isinstance(value, list):
            return {"choice": value}
        if not isinstance(value, cls) and not (isinstance(value, Mapping) and value.keys() & cls.model_fields.keys()):
            raise ValueError(
                f"give a list of values, or one of {', '.join(cls.model_fields)} as {{log_uniform: [1e-4, 1e-2]}};"
                " settings of a section are named by dotted keys, as optim.lr"
            )
        return value

    @pydantic.model_validator(mode="after")
    def _is_one(self) -> Domain:
        given = self.model_dump(exclude_none=True)
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(type(self).model_fields)}")
        [(kind, bounds)] = given.items()
        if kind != "choice" and not bounds[0] < bounds[1]:
            raise ValueError(f"{kind} {list(bounds)}: the first bound must be below the second")
        if kind == "log_uniform" and bounds[0] <= 0:
            raise ValueError(f"log_uniform {list(bounds)}: bounds must be above 0")
        if kind == "powers_of_two" and not self.values:
            raise ValueError(f"powers_of_two {list(bounds)}: there is none between them")
        return self

    @property
    def values(self) -> tuple[Any, ...] | None:
        """All values; None where the domain is continuous."""
        if self.powers_of_two:
            low, high = self.powers_of_two
            return tuple(2**k for k in range(32) if low <= 2**k <= high)
        return self.choice

    def draw(self, random: np.random.Generator) -> Any:
        """Draw one value at random."""
        if self.values is not None:
            return self.values[random.integers(len(self.values))]
        if self.log_uniform:
            low, high = map(math.log, self.log_uniform)
            return self.clip(math.exp(random.uniform(low, high)))
        assert self.uniform, "a domain has one of four kinds"
        return self.clip(random.uniform(*self.uniform))

    def clip(self, value: Any) -> Any:
        """Return the nearest value of four digits, or a bound, in a continuous domain; ``value`` in a finite one."""
        bounds = self.log_uniform or self.uniform
        return min(max(_rounded(value), bounds[0]), bounds[1]) if bounds else value

    def distribution(self) -> BaseDistribution:
        """Return the same domain as a distribution of Optuna, over what ``encode`` returns."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution

        if self.values is not None:
            return CategoricalDistribution([self.encode(value) for value in self.values])
        bounds = self.log_uniform or self.uniform
        assert bounds, "a domain has one of four kinds"
        return FloatDistribution(*bounds, log=self.log_uniform is not None)

    def encode(self, value: Any) -> Any:
        """Return a value as Optuna takes it: a list or a section as JSON text, a number within its bounds."""
        if bounds := self.log_uniform or self.uniform:
            return min(max(value, bounds[0]), bounds[1])  # earlier versions rounded beyond them
        return json.dumps(value) if isinstance(value, (list, dict)) else value

    def decode(self, value: Any) -> Any:
        """Return the value of which ``encode`` made this one."""
        return next((known for known in self.values or () if self.encode(known) == value), value)


Space = dict[str, Domain]

DEFAULT: Space = {
    "optim.lr": Domain(log_uniform=(3e-4, 1e-2)),
    "method.temperature": Domain(log_uniform=(0.05, 1.0)),
    "batch.size": Domain(powers_of_two=(128, 1024)),
    "epochs": Domain(choice=(25, 50, 100)),
}


def load(path: Path | None) -> Space:
    """Read a space from a YAML file of ``dotted.key: domain``; None: the default space.

    Raises:
        ConfigError: the file cannot be read, or a domain is invalid; the message names the key.
    """
    if path is None:
        return DEFAULT
    tree = settle(read_file(path, f"space {path}"))
    if not isinstance(tree, Mapping) or not tree:
        example = "optim.lr: {log_uniform: [1e-4, 1e-2]}"
        raise ConfigError(f"space {path}: it must map dotted keys to domains, e.g. {example}")
    space = {}
    for key, value in tree.items():
        try:
            space[str(key)] = Domain.model_validate(value)
        except pydantic.ValidationError as error:
            raise ConfigError(f"space {path}: {key}: {explain(error, list(Domain.model_fields))}") from None
    for outer, inner in itertools.permutations(space, 2):
        if inner.startswith(f"{outer}."):
            raise ConfigError(f"space {path}: {outer} holds {inner}: search the section or the setting, not both")
    return space


def encode(space: Space, sample: Sample) -> Sample:
    """Return a sample as Optuna takes it."""
    return {key: space[key].encode(value) for key, value in sample.items()}


def decode(space: Space, sample: Sample) -> Sample:
    """Return the sample of which ``encode`` made this one."""
    return {key: space[key].decode(value) for key, value in sample.items()}


def draw(space: Space, number: int, seed: int) -> list[Sample]:
    """Draw ``number`` different samples, the same for the same seed; fewer where the space has fewer."""
    random = np.random.default_rng(seed)
    found: dict[str, Sample] = {}
    for _ in range(100 * number):
        sample = {key: domain.draw(random) for key, domain in space.items()}
        found.setdefault(repr(sample), sample)
        if len(found) == number:
            break
    return list(found.values())


def size(space: Space) -> int | None:
    """Return the number of samples in a space; None where a domain is continuous."""
    values = [domain.values for domain in space.values()]
    return None if None in values else math.prod(len(some or ()) for some in values)


def grid(space: Space) -> list[Sample]:
    """Return every combination of the domains' values.

    Raises:
        ConfigError: a domain is continuous; the message suggests values.
    """
    for key, domain in space.items():
        if domain.values is None:
            low, high = domain.log_uniform or domain.uniform or (0.0, 0.0)
            middle = math.sqrt(low * high) if domain.log_uniform else (low + high) / 2
            example = f"{key}: [{low:g}, {middle:.3g}, {high:g}]"
            raise ConfigError(f"space: {key} is continuous, and a grid needs a list of values: try {example}")
    values = [domain.values or () for domain in space.values()]
    return [dict(zip(space, combination, strict=True)) for combination in itertools.product(*values)]


def apply(recipe: ResolvedConfig, sample: Sample) -> ResolvedConfig:
    """Return a trial's config: the recipe with the sample's settings.

    Where the sample does not set ``batch.micro`` and the batch is not a multiple of it, the largest micro-batch that
    divides both is taken.

    Raises:
        ConfigError: a key is unknown, or the settings do not fit together.
    """
    tree: dict[str, Any] = recipe.model_dump(mode="json")
    for key, value in sample.items():
        put_override(tree, key, value)
    size = tree["batch"].get("size") if isinstance(tree["batch"], dict) else None
    if isinstance(size, int) and size > 0 and {"batch", "batch.micro"}.isdisjoint(sample):
        put_override(tree, "batch.micro", math.gcd(size, recipe.batch.micro))
    return ResolvedConfig.from_tree(tree, f"sample {show(sample)}")


def names(keys: Iterable[str]) -> dict[str, str]:
    """Map dotted keys to their last parts, or to themselves where two end in the same."""
    last = {key: key.rpartition(".")[2] for key in keys}
    return {key: name if list(last.values()).count(name) == 1 else key for key, name in last.items()}


def show(sample: Sample) -> str:
    """Format a sample as one line, with the keys of ``names``."""
    return " ".join(f"{name}={show_value(sample[key])}" for key, name in names(sample).items())


def show_value(value: Any) -> str:
    """Format a value as it is written in YAML; a float with four digits, which are all that a drawn one has."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {show_value(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(show_value, value))}]"
    if isinstance(value, float):
        return f"{value:.4g}"
    return printable(value) if isinstance(value, str) else json.dumps(value)


def _rounded(value: float) -> float:
    """Round to four digits, so that a table shows the very number that was run."""
    return float(f"{value:.4g}")
