"""The commands that measure a run's frozen features."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ssl_dist.commands.console import image_bar, print_json, show
from ssl_dist.commands.options import Json, RunOrCheckpoint, WhichCheckpoint

if TYPE_CHECKING:
    from torch import Tensor

    from ssl_dist.evaluate.compare import Check, Comparison, Score
    from ssl_dist.settings import CheckpointChoice

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Measure a run's frozen features beside random weights."
)

TrainStore = Annotated[str, typer.Option("--train", help="Labelled store to learn from, a folder or a URI.")]
TestStore = Annotated[str, typer.Option("--test", help="Labelled store to classify, a folder or a URI.")]


@app.command()
def knn(
    run: RunOrCheckpoint,
    train: TrainStore,
    test: TestStore,
    k: Annotated[int, typer.Option(min=1, help="Neighbours that vote.")] = 20,
    checkpoint: WhichCheckpoint = "newest",
    temperature: Annotated[float, typer.Option(help="The smaller, the more the nearest of them weigh.")] = 0.1,
    as_json: Json = False,
) -> None:
    """Let k nearest neighbours by cosine similarity s vote, with weights exp(s / temperature)."""
    from ssl_dist.evaluate.labelled import expect_voters

    def score(*features: Tensor) -> float:
        from ssl_dist.evaluate import knn_accuracy  # imports torch: a mistake is told before

        return knn_accuracy(*features, k=k, temperature=temperature)

    check = partial(expect_voters, k=k, temperature=temperature)
    _evaluate(f"kNN, k = {k}", score, check, run, train, test, as_json, checkpoint)


@app.command()
def linear(
    run: RunOrCheckpoint,
    train: TrainStore,
    test: TestStore,
    l2: Annotated[float, typer.Option(help="Penalty: the mean cross-entropy + l2/2 |weights|² is minimised.")] = 1e-3,
    checkpoint: WhichCheckpoint = "newest",
    as_json: Json = False,
) -> None:
    """Fit multinomial logistic regression on standardised features."""
    from ssl_dist.evaluate.labelled import expect_two_classes

    def score(*features: Tensor) -> float:
        from ssl_dist.evaluate import linear_accuracy  # imports torch: a mistake is told before

        return linear_accuracy(*features, l2=l2)

    _evaluate("linear probe", score, partial(expect_two_classes, l2=l2), run, train, test, as_json, checkpoint)


def _evaluate(
    name: str,
    score: Score,
    check: Check,
    run: Path,
    train: str,
    test: str,
    as_json: bool,
    checkpoint: CheckpointChoice,
) -> None:
    result = show_comparison(name, score, check, run, train, test, checkpoint)
    print_json({"evaluation": name, **result._asdict()}, as_json)


def show_comparison(
    name: str,
    score: Score,
    check: Check,
    run: Path,
    train: str | Path,
    test: str | Path,
    checkpoint: CheckpointChoice = "newest",
) -> Comparison:
    """Compare a run's encoder with random weights: a bar while features are computed, then a table."""
    from ssl_dist.evaluate import compare

    with image_bar("embedding, trained and random", "reading the checkpoint") as bar:
        result = compare(run, train, test, score, check=check, checkpoint=checkpoint, progress=bar)
    rows = {f"trained, {result.step} steps": f"{result.trained:.2%}", "random weights": f"{result.random:.2%}"}
    title = f"{name}: accuracy on {result.num_test:,} images, {result.num_train:,} labelled"
    show(title, rows.items(), {}, as_json=False)
    return result
