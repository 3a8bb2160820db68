"""Recipes and dotted ``key=value`` overrides as one tree of settings, and messages that name the nearest known key."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pydantic

from ssl_dist.errors import ConfigError
from ssl_dist.reading import Written, find_recipe, parse, read_file, settle

_NAME = re.compile(r"[a-z_][a-z0-9_]*|[0-9]+")
_LONG = {"optim.lr": "optim.learning_rate"}  # what other programs call a setting
_PLAINER = {
    "a valid tuple": "a list, such as [1, 2]",
    r"a valid dictionary or instance of \w+": "a section, such as {key: value}",
    "a valid dictionary$": "a mapping, such as {key: value}",
}


def read_recipe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a recipe's sections from a file, or from the recipe of that name that comes with the package.

    Raises:
        ConfigError: there is no such recipe, or it is not YAML of sections.
    """
    file = find_recipe(path)
    tree = read_file(file, f"recipe {file}")
    if not isinstance(tree, dict):
        raise ConfigError(f"recipe {file} is not a mapping of sections: write them as data: {{store: FOLDER}}")
    return tree


def put_override(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set one dotted key of a nested mapping, in place.

    Raises:
        ConfigError: an earlier override gave a section of it as something else.
    """
    *sections, last = key.split(".")
    for section in sections:
        inner = tree.get(section)
        if isinstance(inner, Written):  # an earlier override gave the section whole
            text, inner = inner, parse(inner, f"--set {section}={inner}")
            if not isinstance(inner, Mapping) and settle(inner) is not None:
                raise ConfigError(f"--set {section}={text}: it is a section: write it as {section}={{key: value}}")
        tree[section] = dict(inner) if isinstance(inner, Mapping) else {}
        tree = tree[section]
    tree[last] = value


def explain(error: pydantic.ValidationError, known_keys: list[str]) -> str:
    """Describe all errors in one line: dotted keys, values, and the nearest known key of each unknown one."""
    found: dict[tuple[str, str], str] = {}
    for one in error.errors():
        key, message, given = _explain_one(one, known_keys)
        before = found.get((key, given))  # what another of the setting's types says of the same value
        found[key, given] = f"{before}, or {message.removeprefix('Input should be ')}" if before else message
    return "; ".join(f"{key}{message}{given}" for (key, given), message in found.items())


def _explain_one(error: Any, known: list[str]) -> tuple[str, str, str]:
    """Return an error's key, message and value, which make its line; or the whole line as the first of them."""
    *outer, last = [str(part) for part in error["loc"]] or [""]
    # pydantic also names which of a setting's types it tried
    parts = [part for part in outer if _NAME.fullmatch(part)]
    key, given = ".".join([*parts, last] if _NAME.fullmatch(last) else parts), error.get("input")
    if error["type"] == "extra_forbidden":
        key, (section, dot, inner) = ".".join([*parts, last]), last.partition(".")
        hint = f"; write it as {section}: {{{inner}: ...}}" if dot else suggest(key, known)
        return f"unknown key {key}{hint}", "", ""
    if error["type"] == "missing" and not last.isdigit():
        return f"{key} is missing: set it with --set {key}=...", "", ""
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        key, message = ".".join(parts), "Input should have more values"
    if not key or (error["type"] == "value_error" and isinstance(given, Mapping)):
        return message, "", ""
    for pattern, words in _PLAINER.items():
        message = re.sub(pattern, words, message)
    return f"{key}: ", message, f" (given {given!r})"


def suggest(key: str, known: list[str]) -> str:
    """Ask whether the nearest known key was meant; return an empty string if none is near."""
    written = {name: name for name in known} | {_LONG[name]: name for name in known if name in _LONG}

    def likeness(name: str) -> float:
        pairs = [(key, name), (key.rpartition(".")[2], name.rpartition(".")[2])]
        whole, last = (difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)
        return whole if "." in key else max(whole, last)

    near = max(written, key=likeness, default="")
    return f"; did you mean {written[near]}?" if near and likeness(near) > 0.5 else ""


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of every leaf of a nested mapping."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flatten(inner, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value
