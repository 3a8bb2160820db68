"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of output.")]
Run = Annotated[Path, typer.Argument(help="Run directory that `ssl-dist pretrain` printed.")]
Recipe = Annotated[str | None, typer.Argument(help="Recipe file, or the name of one that comes with the package.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace one setting, e.g. optim.lr=0.3.")
]


def overrides_of(settings: list[str] | None) -> dict[str, Any]:
    """Read ``--set`` options as dotted key -> value, in their order; of a key that is given twice, the last counts."""
    from ssl_dist.config.overrides import parse_override

    found: dict[str, Any] = {}
    for key, value in map(parse_override, settings or []):
        found.pop(key, None)  # a section that is given whole between the two would else replace the last
        found[key] = value
    return found
