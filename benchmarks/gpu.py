"""Benchmarks of one GPU, a command a part; each prints JSON lines, needs no network and also runs on a CPU.

python -m benchmarks.gpu nt-xent        # 2 minutes on an H100; --tune measures the kernels' configurations
python -m benchmarks.gpu views
python -m benchmarks.gpu end-to-end
python -m benchmarks.gpu cifar10 --help
"""

from __future__ import annotations

import sys
from importlib import import_module

import typer

PARTS = {"nt-xent": "nt_xent", "views": "views", "end-to-end": "end_to_end", "cifar10": "cifar10"}


def app() -> typer.Typer:
    """Return the app; it only imports the part that is called, so that what another one lacks is in nobody's way."""
    commands = typer.Typer(add_completion=False, no_args_is_help=True)
    commands.callback()(lambda: None)  # a command keeps its name where it is the only one
    for part in [part for part in PARTS if part in sys.argv[1:2]] or PARTS:
        commands.command(part)(import_module(f"benchmarks.cuda.{PARTS[part]}").main)
    return commands


if __name__ == "__main__":
    app()()
