"""The command that pretrains, or resumes a run."""

from __future__ import annotations

import shlex
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ssl_dist.commands.console import console, say, show, shown
from ssl_dist.commands.options import Json, Recipe, Settings, overrides_of
from ssl_dist.errors import ClusterError, ConfigError

if TYPE_CHECKING:
    from cluster.run_directory import RunDirectory
    from ssl_dist.config import ResolvedConfig


# A help text that needs a line of its own.
_RESUME = "Resume this run from its newest valid checkpoint; s3://.../RUN restores a run from its mirror."


def pretrain(
    recipe: Recipe = None,
    settings: Settings = None,
    out: Annotated[Path, typer.Option(help="Folder in which the run gets a directory of its own.")] = Path("runs"),
    run_dir: Annotated[Path | None, typer.Option(help="The run's directory itself; must be new or empty.")] = None,
    resume: Annotated[str | None, typer.Option(metavar="RUN_DIR", help=_RESUME)] = None,
    as_json: Json = False,
) -> None:
    """Pretrain an encoder with Ray Train and DeepSpeed, on this machine or on the cluster of RAY_ADDRESS."""
    from cluster.prepare import reopen, resolve, restore
    from cluster.run_directory import RunDirectory

    overrides = overrides_of(settings)
    if resume is not None and recipe is None:
        if run_dir:
            raise ConfigError("--run-dir is for a new run: a resumed one has its directory")
        run, config = reopen(restore(resume, out) if "://" in resume else Path(resume), overrides)
    elif recipe is not None and resume is None:
        config = resolve(recipe, overrides)
        name = f"{Path(recipe).stem}-{datetime.now():%Y%m%d-%H%M%S}-{config.fingerprint()[:6]}"
        run = RunDirectory.create(run_dir or out / name, config)
    else:
        raise ConfigError("give either a recipe, or --resume RUN_DIR")
    train(run, config, as_json)


def train(run: RunDirectory, config: ResolvedConfig, as_json: bool) -> None:
    """Launch a run, follow it to its end, and show its last numbers."""
    from cluster.launch import launch

    say(f"run directory {run.path}")
    say(f"watch it with: tensorboard --logdir {shlex.quote(str(run.path))}")
    try:
        metrics = launch(config, run, console)
    except ClusterError:
        run.discard()
        raise
    show(run.path.name, shown(metrics).items(), {"run": str(run.path), **metrics}, as_json)
