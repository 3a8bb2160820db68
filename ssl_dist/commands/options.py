"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from ssl_dist.commands.console import keep_stdout
from ssl_dist.errors import ConfigError, RunError

if TYPE_CHECKING:
    from ssl_dist.settings import CheckpointChoice


def _checkpoint_choice(text: str) -> CheckpointChoice:
    """Read ``--checkpoint``.

    Raises:
        ConfigError: it is none of its choices.
    """
    if text in ("newest", "best"):
        return cast("CheckpointChoice", text)
    if text.isascii() and text.isdigit():
        return int(text)
    raise ConfigError(f"--checkpoint {text}: it is newest, best, or a step such as 500")


def _checkpoint_choices(text: str) -> CheckpointChoice | Literal["all"]:
    """Read ``--checkpoint`` of a command that takes several.

    Raises:
        ConfigError: it is none of its choices.
    """
    if text == "all":
        return "all"
    try:
        return _checkpoint_choice(text)
    except ConfigError:
        raise ConfigError(f"--checkpoint {text}: it is all, newest, best, or a step such as 500") from None


_JSON = "Print one JSON object on standard output; tables, bars and other lines go to standard error."
Json = Annotated[bool, typer.Option("--json", callback=keep_stdout, help=_JSON)]


def expect_run(path: Path) -> Path:
    """Return the directory of a run.

    Raises:
        RunError: it is that of a sweep.
    """
    if (path / "sweep.json").exists():
        raise RunError(f"{path} is a sweep: give one of its runs, such as {path}/best, or see `ssl-dist tune`")
    return path


Run = Annotated[Path, typer.Argument(callback=expect_run, help="Run directory that `ssl-dist pretrain` printed.")]
_RUN_OR_CHECKPOINT = "Run directory, its folder of checkpoints, or one checkpoint."
RunOrCheckpoint = Annotated[Path, typer.Argument(metavar="RUN", callback=expect_run, help=_RUN_OR_CHECKPOINT)]
WhichCheckpoint = Annotated[
    Any,  # a settings.CheckpointChoice
    typer.Option(
        "--checkpoint",
        parser=_checkpoint_choice,
        metavar="newest|best|STEP",
        help="The newest checkpoint, the one with the best online probe, or that of a step.",
    ),
]
WhichCheckpoints = Annotated[
    Any,  # a settings.CheckpointChoice or "all"
    typer.Option(
        *("--checkpoint", "--checkpoints"),
        parser=_checkpoint_choices,
        metavar="all|newest|best|STEP",
        help="All checkpoints of the run, the newest, the one with the best online probe, or that of a step.",
    ),
]
Recipe = Annotated[str | None, typer.Argument(help="Recipe file, or the name of one that comes with the package.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace one setting, e.g. optim.lr=0.3.")
]


def overrides_of(settings: list[str] | None) -> dict[str, Any]:
    """Read ``--set`` options as dotted key -> value, in their order; of a key that is given twice, the last counts."""
    from ssl_dist.reading import parse_override

    found: dict[str, Any] = {}
    for key, value in map(parse_override, settings or []):
        found.pop(key, None)  # a section that is given whole between the two would else replace the last
        found[key] = value
    return found
