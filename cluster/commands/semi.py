"""The command that compares semi-supervised methods at several ratios of labelled to unlabelled images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.commands.finetune import RUN_HELP, FirstSeed, conclude, named, starts_of
from ssl_dist.commands.console import console, table
from ssl_dist.commands.evaluate import TestStore
from ssl_dist.commands.options import Json, Settings, WhichCheckpoint, expect_run, overrides_of
from ssl_dist.errors import ConfigError
from ssl_dist.files import expect_folder

if TYPE_CHECKING:
    from cluster.pipelines.semi import SemiRow
    from cluster.pipelines.semi_cells import SemiProtocol

# Help texts that need a line of their own.
_TRAIN = "Store of the labelled and the unlabelled images (ssl-dist store merge joins two), a folder or a URI."
_LABELS = "Labels to learn from, drawn so that each class has its share; all other images are taken as unlabelled."
_RATIOS = "Labelled to unlabelled images, by commas: for 1:5, five unlabelled ones are drawn for each labelled one."
_EPOCHS = "Passes over the labelled images; every run has the steps that these make."
_BATCH = "Labelled images of a step."
_OTHERS = "Unlabelled images of a step of FixMatch."
_THRESHOLD = "Least probability at which FixMatch takes a class for a label. Default: every one."
_SEEDS = "Repetitions of the draws and of training, with the seeds that follow the first."
_FROM = "Weights to start from: run, random, or both. Default: run; random where a recipe has no weights."
_RUN_DIR = "Folder of the runs; the same command with it resumes them. Default: runs/semi-NAME."


def semi(
    run: Annotated[str, typer.Argument(metavar="RUN", help=RUN_HELP)],
    train: Annotated[str, typer.Option("--train", help=_TRAIN)],
    test: TestStore,
    labels: Annotated[str, typer.Option(metavar="10%|5000|32-per-class", help=_LABELS)],
    ratios: Annotated[str, typer.Option(metavar="1:A,1:B", help=_RATIOS)] = "1:1,1:5,1:20",
    epochs: Annotated[float, typer.Option(help=_EPOCHS)] = 20,
    batch: Annotated[int, typer.Option(min=1, help=_BATCH)] = 32,
    unlabelled_batch: Annotated[int, typer.Option(min=1, help=_OTHERS)] = 64,
    optimizer: Annotated[str, typer.Option(help="adam, adamw, sgd or lars.")] = "adam",
    lr: Annotated[float, typer.Option(help="Learning rate; it falls along a cosine.")] = 3e-4,
    threshold: Annotated[float | None, typer.Option(help=_THRESHOLD)] = None,
    seeds: Annotated[int, typer.Option(min=1, help=_SEEDS)] = 1,
    seed: FirstSeed = None,
    starts: Annotated[str | None, typer.Option("--from", metavar="run,random", help=_FROM)] = None,
    checkpoint: WhichCheckpoint = "newest",
    settings: Settings = None,
    run_dir: Annotated[Path | None, typer.Option(help=_RUN_DIR)] = None,
    as_json: Json = False,
) -> None:
    """Train by FixMatch and by pseudo-labels from an encoder, at several ratios, beside the labels alone."""
    overrides, found = overrides_of(settings), _ratios(ratios)
    expect_run(Path(run))
    from cluster.guards import check_machine
    from cluster.pipelines.cells import expect_free
    from cluster.pipelines.origin import Origin
    from cluster.pipelines.semi_cells import OWN, SemiProtocol

    expect_free(overrides, "--set", OWN)
    origin = Origin.of(run, checkpoint, train, overrides)
    given: dict[str, Any] = {"optim.name": optimizer, "optim.lr": lr, "optim.warmup_epochs": 0}
    given |= {} if seed is None else {"seed": seed}
    protocol = SemiProtocol(
        directory=(run_dir or Path("runs") / f"semi-{origin.name}").absolute(),
        origin=origin,
        settings={**given, **overrides},
        ratios=found,
        starts=starts_of(starts, origin.weights is not None),
        seeds=seeds,
        labels=labels,
        epochs=epochs,
        batch=(batch, unlabelled_batch),
        threshold=threshold,
        stores=(train, test),
    )
    expect_folder(protocol.directory)
    check_machine(protocol.cells[0].config.cluster)
    from cluster.pipelines.semi import compare_semi  # imports torch: a mistake above is told before

    rows = compare_semi(protocol, console)
    sentence = _sentence(protocol)
    _show(protocol, rows, sentence)
    conclude("semi-supervised learning", run, protocol, sentence, [row.plain() for row in rows], as_json)


def _ratios(given: str) -> list[int]:
    """Read ``--ratios``.

    Raises:
        ConfigError: one is not of the form 1:N, or is there twice.
    """
    found = [ratio.strip().removeprefix("1:") for ratio in given.split(",")]
    if not all(ratio.isdecimal() and int(ratio) for ratio in found) or len(set(found)) < len(found):
        raise ConfigError(f"--ratios {given}: write each as 1:N once, N of 1 or more, as 1:1,1:5,1:20")
    return [int(ratio) for ratio in found]


def _show(protocol: SemiProtocol, rows: Sequence[SemiRow], sentence: str) -> None:
    several = [*(["from"] if len(protocol.starts) > 1 else [])], [*(["seeds"] if protocol.seeds > 1 else [])]
    shown = table("method", "ratio", *several[0], "test top-1", "95 %", *several[1])
    for row in rows:
        ratio = f"1:{row.ratio}" if row.ratio else ""
        start = [row.start] if several[0] else []
        spread = [] if row.scores.spread is None else [f"±{100 * row.scores.spread:.2f}"]
        shown.add_row(row.method, ratio, *start, f"{row.scores.top1.value:.2%}", row.scores.top1.interval, *spread)
    console.print(shown)
    console.print(sentence, markup=False, highlight=False)


def _sentence(protocol: SemiProtocol) -> str:
    """Say by which protocol the figures were found."""
    import numpy as np

    train, test, truth = protocol.opened
    cell, (batch, others) = protocol.cells[0], protocol.batch
    threshold = "no threshold" if protocol.threshold is None else f"threshold {protocol.threshold:g}"
    repeats = f"; means of {protocol.seeds} seeds, ± their standard deviation" if protocol.seeds > 1 else ""
    return (
        f"Trained from {named(protocol.origin, protocol.starts)} on {cell.config.facts.num_samples:,} of"
        f" {int(np.sum(train.labels >= 0)):,} labels of {train.name}, drawn by class, and for a ratio of 1:N on N times"
        f" as many of its other images without their labels; {cell.steps:,} steps of {batch} images each"
        f" (FixMatch, {threshold}: and {others} unlabelled ones), {cell.config.optim.name}, lr"
        f" {cell.config.optim.lr:g}; the last checkpoint was tested on"
        f" {int(np.sum(truth >= 0)):,} images of {test.name}, and nothing was chosen{repeats}."
    )
