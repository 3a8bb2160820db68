"""The command that explains settings."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Column
from rich.text import Text

from ssl_dist.commands.console import console, print_json, table
from ssl_dist.commands.options import Json
from ssl_dist.errors import ConfigError


def settings(
    key: Annotated[str, typer.Argument(help="Dotted key of a setting or a section, e.g. optim.lr or optim.")] = "",
    as_json: Json = False,
) -> None:
    """Explain a setting, a section, or without a key all settings, with their defaults."""
    from ssl_dist.config.overrides import suggest
    from ssl_dist.config.reference import settings_rows

    rows = settings_rows(key)
    if not rows:
        raise ConfigError(f"unknown setting {key}{suggest(key, [row.key for row in settings_rows()])}")
    shown = table(Column("setting", no_wrap=True), "default", "values and meaning")
    for row in rows:
        names = f" ({', '.join(row.methods)})" if row.methods else ""
        shown.add_row(row.key, Text(row.default), Text(f"{row.values}{names}. {row.description}"))
    console.print(shown)
    print_json({"settings": [row._asdict() for row in rows]}, as_json)
