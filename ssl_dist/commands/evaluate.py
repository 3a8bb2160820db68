"""The commands that measure a run's frozen features with labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.table import Column, Table
from rich.text import Text

from ssl_dist.commands.console import console, image_bar, print_json, say, table
from ssl_dist.commands.options import Json, RunOrCheckpoint, WhichCheckpoint
from ssl_dist.errors import ConfigError

if TYPE_CHECKING:
    from ssl_dist.evaluate.classifier_settings import Distance
    from ssl_dist.evaluate.compare import Comparison, Options, Row
    from ssl_dist.evaluate.protocols import EvaluationProtocol
    from ssl_dist.settings import CheckpointChoice

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Measure what a run's encoder is worth.")

# Help texts that need a line of their own.
_FEATURES = "Outputs that are features, by commas: the backbone's, or the head's without its last one or two layers."
_LAYER = "Layers of the backbone whose pooled outputs are features too: torch's names, by commas, e.g. layer2,layer3."
_BASELINES = "What stands beside the run, by commas: random (weights), pixels, pca (of pixels), or none."
_LABELS = "Training labels to use, drawn so that each class has its share. Default: all."
_SEEDS = "Repeat what is random: random weights, and the draws of images."
_REPORT = "Folder for a report on the run's answers: per class, confusions, the most confident mistakes."
_VOTERS = "Neighbours that vote; several numbers, by commas, make a table each."
_TEMPERATURE = "The smaller it is, the more the nearest neighbours count. Default: 0.1."
_PENALTY = "Penalty: the mean cross-entropy + l2/2 |weights|² is minimised. Default: chosen on training images."

TrainStore = Annotated[str, typer.Option("--train", help="Labelled store to learn from, a folder or a URI.")]
TestStore = Annotated[str, typer.Option("--test", help="Labelled store to classify, a folder or a URI.")]
Features = Annotated[str, typer.Option(metavar="backbone|head-1|head-2|all", help=_FEATURES)]
Layers = Annotated[str, typer.Option("--layer", metavar="NAMES", help=_LAYER)]
Baselines = Annotated[str, typer.Option(metavar="random|pixels|pca|none", help=_BASELINES)]
Labels = Annotated[str | None, typer.Option(metavar="10%|5000|32-per-class", help=_LABELS)]
Seeds = Annotated[int, typer.Option(min=1, help=_SEEDS)]
Seed = Annotated[int, typer.Option(min=0, help="The first seed of what is random.")]
Report = Annotated[Path | None, typer.Option("--report", help=_REPORT)]


@app.command()
def knn(
    run: RunOrCheckpoint,
    train: TrainStore,
    test: TestStore,
    k: Annotated[str, typer.Option(metavar="N|M,N", help=_VOTERS)] = "20",
    checkpoint: WhichCheckpoint = "newest",
    temperature: Annotated[float | None, typer.Option(help=_TEMPERATURE)] = None,
    equal_votes: Annotated[bool, typer.Option("--equal-votes", help="Give all k neighbours the same weight.")] = False,
    distance: Annotated[str, typer.Option(metavar="cosine|euclidean", help="Measure of distance.")] = "cosine",
    features: Features = "backbone",
    layers: Layers = "",
    baselines: Baselines = "random",
    labels: Labels = None,
    seeds: Seeds = 1,
    seed: Seed = 0,
    report: Report = None,
    as_json: Json = False,
) -> None:
    """Let the k nearest training images vote, with weights exp(s / temperature) for cosine similarities s."""
    from ssl_dist.evaluate.protocols import Knn

    if equal_votes and temperature is not None:
        raise ConfigError(
            f"--equal-votes gives all votes one weight, and --temperature {temperature:g} sets weights: give one"
        )
    numbers = _voters(k)
    if report and len(numbers) > 1:
        raise ConfigError(f"--report is on the answers of one number of voters, and --k names {len(numbers)}: give one")
    weight: dict[str, Any] = {} if temperature is None else {"temperature": temperature}
    weight |= {"temperature": None} if equal_votes else {}
    protocols = [Knn(number, distance=cast("Distance", distance), **weight) for number in numbers]
    options = options_of(features, layers, baselines, checkpoint, seeds, labels, seed)
    _evaluate(protocols, run, train, test, options, report, as_json)


@app.command()
def linear(
    run: RunOrCheckpoint,
    train: TrainStore,
    test: TestStore,
    l2: Annotated[float | None, typer.Option(help=_PENALTY)] = None,
    standardise: Annotated[bool, typer.Option(help="Scale each feature to mean 0 and variance 1.")] = True,
    checkpoint: WhichCheckpoint = "newest",
    features: Features = "backbone",
    layers: Layers = "",
    baselines: Baselines = "random",
    labels: Labels = None,
    seeds: Seeds = 1,
    seed: Seed = 0,
    report: Report = None,
    as_json: Json = False,
) -> None:
    """Fit multinomial logistic regression on frozen features."""
    from ssl_dist.evaluate.protocols import Linear

    options = options_of(features, layers, baselines, checkpoint, seeds, labels, seed)
    _evaluate([Linear(l2, standardise)], run, train, test, options, report, as_json)


def _voters(given: str) -> list[int]:
    """Read ``--k``.

    Raises:
        ConfigError: one is no number of 1 or more, or is there twice.
    """
    found = [number.strip() for number in given.split(",")]
    if not all(number.isdecimal() and int(number) for number in found) or len(set(found)) < len(found):
        raise ConfigError(f"--k {given}: it is a number of 1 or more, or several, each once, as 1,20")
    return [int(number) for number in found]


def options_of(
    features: str,
    layers: str,
    baselines: str,
    checkpoint: CheckpointChoice,
    seeds: int,
    labels: str | None,
    seed: int,
) -> Options:
    """Return the options of a comparison, of texts with names between commas."""
    from ssl_dist.evaluate.compare import Options

    def names(text: str) -> list[str]:
        return [name.strip() for name in text.split(",") if name.strip()]

    beside = [] if baselines.strip() == "none" else names(baselines)
    return Options(names(features), names(layers), beside, checkpoint, seeds, labels, seed)


def _evaluate(
    protocols: Sequence[EvaluationProtocol],
    run: Path,
    train: str,
    test: str,
    options: Options,
    report: Path | None,
    as_json: bool,
) -> None:
    from ssl_dist.report import classification

    if report:
        classification.expect_writable(report)
    results = show_comparisons(protocols, run, train, test, options)
    result = results[0]
    plain: dict[str, Any] = result.plain() if len(results) == 1 else {"evaluations": [one.plain() for one in results]}
    if report:
        plain["report"] = classification.write(result, report)
        console.print(plain["report"]["summary"], markup=False, highlight=False)
        say(f"{report}: {', '.join(classification.FILES)}")
    print_json(plain, as_json)


def show_comparisons(
    protocols: Sequence[EvaluationProtocol],
    run: Path,
    train: str | Path,
    test: str | Path,
    options: Options | None = None,
) -> Sequence[Comparison]:
    """Compare a run's encoder with baselines: a bar while features are computed, then tables and their protocols."""
    from ssl_dist.evaluate.compare import Options, compare_by

    with image_bar("embedding", "reading the checkpoint") as bar:
        results = compare_by(run, train, test, protocols, options or Options(), bar)
    for result in results:
        console.print(result.name, style="bold", highlight=False)
        console.print(accuracy_table(result.rows))
        console.print(result.protocol, markup=False, highlight=False)
    return results


def accuracy_table(rows: Sequence[Row]) -> Table:
    """Make the table of a comparison's rows; a column that would say nothing is left out."""
    from ssl_dist.evaluate.scores import spread

    columns: dict[str, list[str]] = {
        "encoder": [row.encoder for row in rows],
        "features": [row.features for row in rows] if len({row.features for row in rows}) > 1 else [],
        "top-1": [f"{row.top1.value:.2%}" for row in rows],
        "95 %": [row.top1.interval for row in rows],
        "difference": [str(row.difference or "") for row in rows],
        "seeds": ["" if (s := spread(row.repeats)) is None else f"±{100 * s:.2f}" for row in rows],
        "top-5": ["" if row.top5 is None else f"{row.top5.value:.2%}" for row in rows],
        "chosen": [", ".join(f"{name} {value:g}" for name, value in row.chosen.items()) for row in rows],
    }
    columns = {name: texts for name, texts in columns.items() if any(texts)}
    shown = table(Column("encoder", no_wrap=True), *list(columns)[1:])
    for texts in zip(*columns.values(), strict=True):
        shown.add_row(*map(Text, texts))
    return shown
