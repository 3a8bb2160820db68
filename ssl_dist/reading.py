"""Reading of recipes and values as people write them: YAML 1.2, whose plain values a setting's type interprets.

A value without quotes stays ``Written`` until it meets its setting. A setting of text takes it as it stands; every
other one reads it by YAML 1.2's core schema, with decimal numbers. So ``00012`` is a folder's name and the number 12.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from fractions import Fraction
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from ssl_dist.errors import ConfigError

RECIPE_FOLDER = Path(__file__).parent / "config" / "recipes"

_NONE = ("", "~", "null", "Null", "NULL")
_WORDS = dict.fromkeys(_NONE) | dict.fromkeys(("true", "True", "TRUE"), True)
_WORDS |= dict.fromkeys(("false", "False", "FALSE"), False)
_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class Written(str):
    """A value without quotes, of a recipe or of ``--set``, whose setting's type decides what it means (``settle``)."""


class _Loader(yaml.SafeLoader):
    """A loader that leaves plain values as they are written, and refuses a key that a mapping has twice."""

    yaml_implicit_resolvers = {"<": [("tag:yaml.org,2002:merge", re.compile("^<<$"))]}  # noqa: RUF012  # PyYAML's

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if key.value in lines:
                raise yaml.YAMLError(
                    f"{key.value} is given on line {lines[key.value]} and again on line {line}: keep one"
                )
            lines[key.value] = line
        return node


def _scalar(loader: _Loader, node: yaml.ScalarNode) -> str:
    return Written(node.value) if node.style is None else str(node.value)


_Loader.add_constructor("tag:yaml.org,2002:str", _scalar)


def parse(text: str, origin: str) -> Any:
    """Parse YAML into mappings, lists and values, of which those without quotes stay ``Written``.

    Args:
        origin: names the text's source in messages.

    Raises:
        ConfigError: it is not YAML, or a mapping has a key twice; the message names the lines.
    """
    try:
        found = yaml.load(text, _Loader)  # a safe loader
        json.dumps(found, default=str, skipkeys=True)  # refuses what contains itself, as `&a [*a]` does
        return found
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError) as error:  # of explicit tags
        reason = " ".join(str(error).split()).replace('in "<unicode string>",', "on")
        raise ConfigError(f"{origin} cannot be read as YAML: {reason}") from None


def read_file(path: Path, origin: str) -> Any:
    """Read a file of YAML, as ``parse`` does.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        return parse(path.read_text(encoding="utf-8"), origin)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{origin} cannot be read: {error}") from None


def find_recipe(recipe: str | os.PathLike[str]) -> Path:
    """Return the file of a recipe: a path, or the name of a recipe that comes with the package.

    Raises:
        ConfigError: there is no such recipe.
    """
    shipped = sorted(file.stem for file in RECIPE_FOLDER.glob("*.yaml"))
    file = RECIPE_FOLDER / f"{recipe}.yaml" if str(recipe) in shipped else Path(recipe)
    if not file.is_file():
        near = [f"did you mean {name}? " for name in difflib.get_close_matches(str(recipe), shipped, 1)]
        raise ConfigError(f"recipe {recipe}: no such file; {''.join(near)}the package comes with {', '.join(shipped)}")
    return file


def parse_override(text: str) -> tuple[str, Written]:
    """Split ``"optim.lr=0.3"`` into the dotted key and the value, which the setting's type will interpret.

    Raises:
        ConfigError: it is not of this form.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {text}: write it as key=value, e.g. --set optim.lr=0.3")
    return key, Written(value)


def settle(value: Any, kind: Any = Any) -> Any:
    """Return what a value means to a setting of type ``kind``; what is not ``Written`` stays what it is.

    The values of a section are left to the section's own settings. Without ``kind``, all values are settled.

    Raises:
        ConfigError: a value that is not text is not YAML.
    """
    kinds = _members(kind)
    if isinstance(value, Written) and str in kinds:
        return None if value == "" or (type(None) in kinds and value in _NONE) else str(value)
    if isinstance(value, Written):
        value = parse(value, "the value")
    if isinstance(value, Written):
        is_name = any(value in get_args(one) for one in kinds if get_origin(one) is Literal)
        value = str(value) if is_name else _plain(value)
    if isinstance(value, bool) and bool not in kinds and Any not in kinds:
        return str(value).lower()  # true is no number: as one it would count as 1
    if isinstance(value, list):
        inner = next((get_args(one)[0] for one in kinds if get_origin(one) in (tuple, list)), kind)
        return [settle(one, inner) for one in value]
    if isinstance(value, dict) and kind is Any:
        return {key: settle(inner, Any) for key, inner in value.items()}
    return value


def _members(kind: Any) -> list[Any]:
    """Return the members of a union, or the type itself."""
    if get_origin(kind) is Annotated:
        return _members(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [member for one in get_args(kind) for member in _members(one)]
    return [kind]


def _plain(text: str) -> Any:
    """Return a plain value by YAML 1.2's core schema, without its octal and hexadecimal numbers."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return float(text.replace(".", "")) if _NOT_FINITE.fullmatch(text) else str(text)


def value_at(tree: Any, key: str) -> Any:
    """Return the value of a dotted key; None in a section that is null or not there."""
    for name in key.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def exact(number: float) -> Fraction:
    """Return the rational number that was written: 0.29 is 29/100, although its float is a little less.

    A float that was computed is the simplest fraction with a denominator up to 16 million, more than the images of most
    data sets, that has this very float, if there is one: 100 / 9 is 100/9.
    """
    written = Fraction(str(number))
    simple = written.limit_denominator(1 << 24)
    return simple if float(simple) == number else written
