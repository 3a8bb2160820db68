"""The command that measures all of an encoder that fits into a number of minutes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from ssl_dist.commands.console import ImageBar, console, image_bar, print_json, say
from ssl_dist.commands.evaluate import TestStore, TrainStore, accuracy_table
from ssl_dist.commands.options import Json, RunOrCheckpoint, WhichCheckpoint
from ssl_dist.commands.rank import show_ranks
from ssl_dist.errors import ConfigError

_MOST_MINUTES = 100_000


def all_(
    run: RunOrCheckpoint,
    train: TrainStore,
    test: TestStore,
    minutes: Annotated[float, typer.Option(help="Time that all of it may take.")] = 5,
    checkpoint: WhichCheckpoint = "newest",
    as_json: Json = False,
) -> None:
    """Measure all of an encoder that fits into some minutes: accuracies, ranks, mistakes, a map.

    The figures are written to RUN/evaluation.json, which `ssl-dist report` reads, and pictures to RUN/evaluation. What
    does not fit is named. Fine-tuning is a run of its own: see `evaluate finetune`.
    """
    from ssl_dist.checkpoint import locate, run_directory
    from ssl_dist.evaluate.labelled import open_pair
    from ssl_dist.evaluate.protocols import Knn, Linear
    from ssl_dist.report import evaluation

    if not 0.1 <= minutes <= _MOST_MINUTES:
        raise ConfigError(f"--minutes {minutes:g}: it is 0.1 to {_MOST_MINUTES:,}")
    found = locate(run, checkpoint)
    pair = open_pair(train, test, found.config.data, found.config.facts.image_shape)
    for protocol in (Knn(1), Linear()):
        protocol.check(pair[0].labels)
    directory = run_directory(run)
    evaluation.expect_writable(directory)
    from ssl_dist.evaluate.everything import measure  # imports torch: a mistake is told before

    result = measure(found, pair, 60 * minutes, _bar)
    plain = evaluation.write(directory, result)
    for one in result.accuracies:
        console.print(one.name, style="bold", highlight=False)
        console.print(accuracy_table(one.rows))
    for one in result.accuracies[1:]:
        console.print(one.protocol, markup=False, highlight=False)
    console.print(f"{result.accuracies[-1].name}: {plain['mistakes']}", markup=False, highlight=False)
    if result.ranks:
        console.print(f"Backbone features of {result.num_ranked:,} training images, without labels", style="bold")
        show_ranks(result.ranks)
    for name, reason in result.left_out.items():
        say(f"left out: {name}: {reason}")
    say(f"{result.seconds:.0f} s; {directory / evaluation.FILE}, pictures in {directory / evaluation.FOLDER}")
    print_json({"run": str(run), **plain}, as_json)


@contextmanager
def _bar(title: str) -> Iterator[ImageBar]:
    with image_bar(title, "reading the checkpoint") as bar:
        yield bar
