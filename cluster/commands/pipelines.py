"""The commands that complete several runs, one after another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ssl_dist.commands.console import console, print_json, table
from ssl_dist.commands.options import Json, Settings, overrides_of
from ssl_dist.commands.runs import show_summary

# Help texts that need a line of their own.
_CLUSTERS = "Clusters of the autoencoder's latents. Default: batch.size, so that a batch has one image of each."
_SET_AUTOENCODER = "Replace one setting of the autoencoder's recipe."
_SHARE = "Share of the unlabelled images that get a label in a round; more than 0, at most 1."

RunsFolder = Annotated[Path, typer.Option(help="Folder of the runs; the same command with it resumes them.")]


def g_simclr(
    recipe: Annotated[str, typer.Argument(help="Recipe of SimCLR.")] = "gsimclr-cifar10",
    autoencoder: Annotated[str, typer.Option(help="Recipe of the autoencoder.")] = "denoising-cifar10",
    clusters: Annotated[int | None, typer.Option(min=2, help=_CLUSTERS)] = None,
    settings: Settings = None,
    autoencoder_settings: Annotated[
        list[str] | None, typer.Option("--set-autoencoder", metavar="KEY=VALUE", help=_SET_AUTOENCODER)
    ] = None,
    run_dir: RunsFolder = Path("runs/g-simclr"),
    as_json: Json = False,
) -> None:
    """Train an autoencoder, cluster its latents, then train SimCLR on batches spread over the clusters."""
    from cluster.guards import check_machine
    from cluster.prepare import resolve
    from ssl_dist.config import RunConfig

    given = overrides_of(settings)
    RunConfig.load(recipe, {**given, "data.stratified": True})  # as it will be: nothing is trained for a refusal
    later = resolve(recipe, {**given, "data.stratified": False, "data.label_file": None})
    first = resolve(autoencoder, {"data.store": later.data.store, **overrides_of(autoencoder_settings)})
    check_machine(first.cluster, "--set-autoencoder")
    check_machine(later.cluster)
    from cluster.pipelines.g_simclr import GSimCLR  # imports torch: a mistake above is told before

    last = GSimCLR(run_dir.absolute(), first, later, clusters or later.batch.size).run(console)
    run = run_dir.absolute() / "simclr"
    show_summary("g-simclr", run, {"run": str(run), **last}, as_json)


def self_train(
    test: Annotated[str, typer.Option(help="Labelled store that each round is measured on, a folder or a URI.")],
    recipe: Annotated[str, typer.Argument(help="Recipe of a method that classifies.")] = "supervised-cifar10",
    share: Annotated[float, typer.Option(help=_SHARE)] = 0.1,
    margin: Annotated[float, typer.Option(help="A round that gains less accuracy than this is the last.")] = 0.002,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds after the first, at most.")] = 5,
    settings: Settings = None,
    run_dir: RunsFolder = Path("runs/self-train"),
    as_json: Json = False,
) -> None:
    """Train, label the images that the model is surest of, train again, in rounds."""
    from cluster.prepare import resolve

    config = resolve(recipe, overrides_of(settings))
    from cluster.pipelines.self_training import SelfTraining  # imports torch: a mistake above is told before

    found = SelfTraining(run_dir.absolute(), config, test, share, margin, rounds).run(console)
    shown = table("round", "labels", "added", "right of these", "accuracy")
    for number, one in enumerate(found):
        right = "" if one.right is None else f"{one.right:.1%}"
        shown.add_row(str(number), f"{one.labelled:,}", f"{one.added:,}", right, f"{one.accuracy:.1%}")
    console.print(shown)
    print_json({"run": str(run_dir), "rounds": [one._asdict() for one in found]}, as_json)
