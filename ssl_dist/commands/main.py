"""The entry of the command line: ``ssl-dist`` and ``python -m ssl_dist`` begin here, with the table of commands."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from typing import Annotated, Any, NoReturn

import typer
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from ssl_dist import __version__
from ssl_dist.commands.console import LogLines, console, errors, escape_unprintable, print_json, stdout_given_back
from ssl_dist.commands.signals import handled, interrupt
from ssl_dist.commands.table import COMMANDS, load
from ssl_dist.errors import ConfigError, Interrupted, SslDistError, UsageError, printable

_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # a full disk, or a terminal that is gone


class _TableGroup(TyperGroup):
    """The commands of the table. Help shows their lines; only the command that is called is imported."""

    def __init__(self, **attributes: Any) -> None:
        lines = {name: TyperCommand(name, help=entry.help) for name, entry in COMMANDS.items()}
        super().__init__(**{**attributes, "commands": lines})

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted("stopped") from None

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, _, rest = super().resolve_command(ctx, args)
        return name, name and command_of(name), rest


def command_of(name: str) -> Any:
    """Import a command of the table, or a group of commands, as Click knows it."""
    entry = COMMANDS[name]
    found = load(entry.target)
    if not isinstance(found, typer.Typer):
        return _click_command(name, found)
    group = typer.main.get_command(found)
    assert isinstance(group, TyperGroup)
    for inner, target in entry.more.items():
        group.add_command(_click_command(inner, load(target)))
    return group


def _click_command(name: str, function: Any) -> Any:
    app = typer.Typer(add_completion=False)
    app.command(name)(function)
    return typer.main.get_command(app)


_WrongCall: Any = typer.BadParameter.__base__  # Click's UsageError, wherever typer has it from
app = typer.Typer(cls=_TableGroup, no_args_is_help=True, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print(f"ssl_dist {__version__}", highlight=False)
        raise typer.Exit


_VERSION = typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")


@app.callback()
def _root(version: Annotated[bool, _VERSION] = False) -> None:
    """Pretrain an image encoder on unlabelled images: store -> pretrain -> evaluate."""


def _leave_current_folder() -> None:
    """Let this process and those that it starts import nothing of the current folder.

    An empty entry of PYTHONPATH, as ``$PYTHONPATH:/lib`` leaves one, stands for that folder.

    Raises:
        ConfigError: the folder is gone.
    """
    try:
        here = os.getcwd()
    except FileNotFoundError:
        raise ConfigError("the current folder is gone: change to another one, as with cd") from None
    os.environ["PYTHONSAFEPATH"] = "1"
    if given := os.environ.get("PYTHONPATH"):
        entries = given.split(os.pathsep)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, entries))
        if "" in entries and here not in entries:
            sys.path[:] = [path for path in sys.path if os.path.abspath(path) != here]


def main() -> None:
    """Run the command line; an error raised on purpose ends as one line and its exit code, without a traceback.

    With --json the object on standard output is then ``{"error": ...}``.
    """
    escape_unprintable()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[LogLines()])
    try:
        try:
            _leave_current_folder()
            with handled(interrupt), stdout_given_back():
                sys.exit(app(standalone_mode=False))
        except _WrongCall as error:
            _end_with(*_explained(error))
        except SslDistError as error:
            _end_with(str(error), error.exit_code, is_wish=isinstance(error, Interrupted))
        except OSError as error:
            if error.filename is None:  # of no file that a person could name
                raise
            exit_code = SslDistError.exit_code if error.errno in _CANNOT_WRITE else UsageError.exit_code
            _end_with(printable(f"{error.filename}: {error.strerror}"), exit_code)
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left would be written at exit
        with contextlib.suppress(OSError):
            _print_error(f"{error.strerror}: the output of this command is cut off")
        sys.exit(1)


def _explained(error: Any) -> tuple[str, int]:
    """Return the message of a call with a wrong command, option or value, and its exit code.

    Where a group is called alone, its help has been printed and takes the message's place.
    """
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.exit(error.exit_code)
    said = error.format_message().rstrip(".")
    if error.ctx:
        said += f"{'' if said.endswith('?') else '.'} See {error.ctx.command_path} --help"
    return said, error.exit_code


def _end_with(message: str, exit_code: int, *, is_wish: bool = False) -> NoReturn:
    """Print an error, or what a person's Ctrl-C has brought about, and exit."""
    if is_wish:
        errors.print(Text(message))
    else:
        _print_error(message)
    print_json({"error": message}, "--json" in sys.argv)
    sys.exit(exit_code)


def _print_error(message: str) -> None:
    errors.print(Text.assemble(("error:", "bold red"), f" {message}"))
