"""The command that checks a cluster before a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ssl_dist.commands.console import console, errors, print_json, waiting
from ssl_dist.commands.options import Json, Settings, overrides_of
from ssl_dist.errors import ConfigError

# Help texts that need a line of their own.
_RECIPE = "Recipe for a dry run of 20 steps; without one, only the cluster is checked."
_EXACT = "Compare the gradient of the recipe's method with one process's; without a recipe, of every method."


def doctor(
    recipe: Annotated[str | None, typer.Argument(help=_RECIPE)] = None,
    settings: Settings = None,
    storage: Annotated[Path, typer.Option(help="Folder that all nodes share, for stores and runs.")] = Path("runs"),
    hosts: Annotated[str, typer.Option(help="Addresses or names that should be in the cluster, with commas.")] = "",
    exact: Annotated[bool, typer.Option("--exact", help=_EXACT)] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Workers. Default: the recipe's, or 2.")] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="Give each worker one GPU.")] = False,
    as_json: Json = False,
) -> None:
    """Check this machine, or the cluster of RAY_ADDRESS, before it costs money; exit code 1 where it is not well."""
    from cluster.prepare import resolve
    from ssl_dist.settings import ClusterConfig

    overrides = overrides_of(settings)
    if overrides and recipe is None:
        raise ConfigError(f"--set {next(iter(overrides))}: there is no recipe whose setting it replaces: name one")
    if workers is not None:
        overrides["cluster.workers"] = workers
    if gpu:
        overrides["cluster.gpu"] = True
    config = resolve(recipe, overrides) if recipe else None
    cluster = config.cluster if config else ClusterConfig.model_validate({"workers": workers or 2, "gpu": gpu})
    from cluster.doctor import check, show_report  # imports torch: a mistake above is told before

    expected = [host for host in hosts.split(",") if host]
    with waiting("reaching Ray", errors) as now:
        found = check(cluster, storage.absolute(), expected, exact=exact, config=config, say=now)
    show_report(console, found)
    plain = {key: _plain(value) for key, value in found._asdict().items()}
    print_json({"healthy": found.healthy, **plain}, as_json)
    if not found.healthy:
        raise typer.Exit(1)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [one._asdict() for one in value]
    return value._asdict() if value else None
