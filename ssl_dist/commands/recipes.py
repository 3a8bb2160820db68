"""The command that shows the recipes that come with the package, by what their headers say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column
from rich.text import Text

from ssl_dist.commands.console import console, print_json, say, table
from ssl_dist.commands.options import Json
from ssl_dist.reading import RECIPE_FOLDER, find_recipe, read_file

_HEAD = re.compile(r"^# (Hardware|Time|Result):\s+(.*)$", re.MULTILINE)


def recipes(
    name: Annotated[str, typer.Argument(help="Name of a recipe, which is then printed.")] = "", as_json: Json = False
) -> None:
    """List the recipes that come with the package, with hardware, time and result, or print one."""
    if name:
        text = find_recipe(name).read_text(encoding="utf-8")
        if as_json:
            print_json({"name": name, "recipe": text}, as_json)
        else:
            typer.echo(text, nl=False)
        return
    rows = [_row(file) for file in sorted(RECIPE_FOLDER.glob("*.yaml"))]
    if as_json:
        print_json({"recipes": rows}, as_json)
        return
    shown = table(Column("recipe", no_wrap=True), "what it says of hardware, time and result", show_lines=True)
    for row in rows:
        shown.add_row(f"{row['name']}\n{row['method']}", Text(f"{row['hardware']}. {row['time']}. {row['result']}"))
    console.print(shown)
    say("print one: ssl-dist recipes NAME; one for your own store: ssl-dist init STORE")


def _row(file: Path) -> dict[str, Any]:
    """Return what a recipe's header and its method's section say."""
    head = {key.lower(): value for key, value in _HEAD.findall(file.read_text(encoding="utf-8"))}
    method = read_file(file, f"recipe {file}").get("method", {}).get("name", "simclr")
    return {"name": file.stem, "method": str(method), **head}
