"""The reference of all settings: key, values, default and description of each, as rows or as a Markdown page.

``python -m ssl_dist.config.reference > docs/settings.md`` writes the page.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from ssl_dist import methods
from ssl_dist.config.run import RunConfig

_WRAPPER = textwrap.TextWrapper(80, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
_LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_TYPES = {"integer": "int", "number": "float", "string": "text", "boolean": "true or false", "null": "null"}
_TYPES |= {"object": "mapping"}
_HEAD = """# Settings

All settings of a recipe, section by section: each with its default, the values
that it takes, and its meaning. On the command line, `--set data.window=1000`
replaces one, and `ssl-dist settings KEY` prints one or a whole section. This page
is written by `python -m ssl_dist.config.reference > docs/settings.md`.

Recipes, the values of `--set` and spaces of sweeps are YAML 1.2: numbers are
decimal (`1e-3`, `010` is ten), and `yes`, `1:30` or a date are text. A setting of
text takes a value without quotes as it stands: `--set data.store=00012` and
`--set 'data.store=photos #2'` name these very folders. A setting that may be null
is null where it is given `null` or nothing. A recipe that has a key twice is
refused; of a `--set` that is given twice, the last one counts.
"""


class Setting(NamedTuple):
    """One setting.

    Attributes:
        key: its dotted key.
        methods: names of the methods that have it; empty: it does not depend on the method.
        values: its type and range.
        default: its default as YAML, or "required".
        description: one or two sentences.
    """

    key: str
    methods: tuple[str, ...]
    values: str
    default: str
    description: str


def settings_rows(key_prefix: str = "") -> list[Setting]:
    """List the settings whose dotted key is ``key_prefix`` or lies below it; without a prefix, list all.

    A setting that several methods have with the same default is listed once.
    """
    rows = [row for row in _walk(RunConfig.model_json_schema(), "") if _section(row) != "method"]
    place = [_section(row) for row in rows].index("batch")  # the method stands before it
    rows[place:place] = _method_rows()
    return [row for row in rows if f"{row.key}.".startswith(f"{key_prefix}." if key_prefix else "")]


def _method_rows() -> list[Setting]:
    found: dict[Setting, tuple[str, ...]] = {}
    for method in methods.names():
        for row in _walk(methods.config_of(method).model_json_schema(), "method."):
            if row.key != "method.name":
                found[row] = (*found.get(row, ()), method)
    text = "Name of the pretraining method, which decides the other settings of this section."
    name = Setting("method.name", (), ", ".join(methods.names()), "simclr", text)
    return [name, *(row._replace(methods=names) for row, names in found.items())]


def _walk(schema: dict[str, Any], prefix: str, section: dict[str, Any] | None = None) -> Iterator[Setting]:
    """Yield the settings of a JSON schema, or of one ``section`` among its definitions."""
    for name, field in (section or schema)["properties"].items():
        kinds = field.get("anyOf", [field])
        sections = [schema["$defs"][kind["$ref"].rpartition("/")[2]] for kind in kinds if "$ref" in kind]
        text = " ".join(field.get("description", "").replace("`None`", "`null`").split())
        if text or not sections:
            default = json.dumps(field["default"]).strip('"') if "default" in field else "required"
            values = " or ".join(map(_values, kinds))
            yield Setting(f"{prefix}{name}", (), values, "as below" if sections else default, text)
        for inner in sections:
            yield from _walk(schema, f"{prefix}{name}.", inner)


def _values(kind: dict[str, Any]) -> str:
    """Describe the values that a JSON schema allows."""
    if "$ref" in kind:
        return "section"
    if "const" in kind:
        return str(kind["const"])
    if "enum" in kind:
        return ", ".join(map(str, kind["enum"]))
    if "prefixItems" in kind:
        size = {2: "pair", 3: "triple"}[len(kind["prefixItems"])]
        return f"{size} of {_values(kind['prefixItems'][0])}"
    if "items" in kind:
        return f"list of {_values(kind['items'])}"
    limits = [f"{sign} {kind[name]:g}" for name, sign in _LIMITS.items() if kind.get(name, 2**63) < 2**63]
    return f"{_TYPES[kind['type']]} {', '.join(limits)}".strip()


def _section(row: Setting) -> str:
    section, dot, _ = row.key.partition(".")
    return section if dot or section == "probe" else ""


def markdown() -> str:
    """Return the page of all settings: a list for each section, and one for each method."""
    rows = settings_rows()
    parts = [_HEAD]
    for section in dict.fromkeys(map(_section, rows)):
        mine = [row for row in rows if _section(row) == section]
        parts += [f"## {section or 'The run'}\n", _list(row for row in mine if not row.methods)]
        for method in methods.names() if section == "method" else ():
            parts += [f"### {method}\n", _list(row for row in mine if method in row.methods)]
    return "\n".join(parts)


def _list(rows: Iterable[Setting]) -> str:
    lines = (f"- `{row.key}`: {row.default} ({row.values}). {row.description}" for row in rows)
    return "".join(f"{_WRAPPER.fill(line)}\n" for line in lines)


if __name__ == "__main__":
    print(markdown(), end="")
