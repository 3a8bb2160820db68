"""The command that fine-tunes an encoder on some labels, and the supervised baseline beside it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssl_dist.commands.console import console, print_json, say, table
from ssl_dist.commands.evaluate import Labels, TestStore, TrainStore
from ssl_dist.commands.options import Json, Settings, WhichCheckpoint, expect_run, overrides_of
from ssl_dist.errors import ConfigError
from ssl_dist.files import expect_folder, write_text
from ssl_dist.uris import without_secrets

if TYPE_CHECKING:
    from cluster.pipelines.cells import Protocol
    from cluster.pipelines.finetune import Row
    from cluster.pipelines.origin import Origin
    from cluster.pipelines.semi_cells import SemiProtocol

# Help texts that need a line of their own.
FirstSeed = Annotated[int | None, typer.Option("--seed", min=0, help="The first seed. Default: the run's.")]
RUN_HELP = "Run directory or one checkpoint; or a recipe, whose backbone starts from backbone.weights or from random."
_UNFREEZE = "Layers to train: head, all, or last:N, the last N layers, of which the head is one."
_VALIDATION = "Share of the drawn labels that choose the checkpoint and the best cell, and drive the schedule; 0: none."
_HIDDEN = "Features of a hidden layer of the head, with ReLU. Default: a linear head."
_SCHEDULE = "plateau, cosine or constant. Default: plateau, or cosine where nothing is validated on."
_DECAY = "Factor from each layer's learning rate to that of the layer before it; the head has the whole rate."
_PATIENCE = "End a run after so many epochs without a lower validation loss. Default: never."
_GRID = "Several values of lr, batch, epochs, unfreeze, hidden, layer-decay or a dotted key; each combination is a row."
_SEEDS = "Repetitions of the draw and of training, with the seeds that follow the first."
_FROM = "Weights to start from: run, random, or both. Default: run; random where a recipe has no weights."
_RUN_DIR = "Folder of the runs; the same command with it resumes them. Default: runs/finetune-NAME."


def finetune(
    run: Annotated[str, typer.Argument(metavar="RUN", help=RUN_HELP)],
    train: TrainStore,
    test: TestStore,
    unfreeze: Annotated[str, typer.Option(metavar="head|last:N|all", help=_UNFREEZE)] = "all",
    labels: Labels = None,
    validation: Annotated[float, typer.Option(help=_VALIDATION)] = 0.1,
    hidden: Annotated[int | None, typer.Option(min=1, help=_HIDDEN)] = None,
    optimizer: Annotated[str, typer.Option(help="adam, adamw, sgd or lars.")] = "adam",
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 3e-4,
    batch: Annotated[int, typer.Option(help="Images of a step.")] = 32,
    epochs: Annotated[float, typer.Option(help="Passes over the labels that are learned from.")] = 20,
    schedule: Annotated[str | None, typer.Option(metavar="NAME", help=_SCHEDULE)] = None,
    layer_decay: Annotated[float, typer.Option(help=_DECAY)] = 1.0,
    patience: Annotated[int | None, typer.Option(min=1, help=_PATIENCE)] = None,
    grid: Annotated[list[str] | None, typer.Option(metavar="NAME=A,B", help=_GRID)] = None,
    seeds: Annotated[int, typer.Option(min=1, help=_SEEDS)] = 1,
    seed: FirstSeed = None,
    starts: Annotated[str | None, typer.Option("--from", metavar="run,random", help=_FROM)] = None,
    checkpoint: WhichCheckpoint = "newest",
    settings: Settings = None,
    run_dir: Annotated[Path | None, typer.Option(help=_RUN_DIR)] = None,
    as_json: Json = False,
) -> None:
    """Fine-tune an encoder on some labels, in the layers and over the grid that you name, and test it."""
    if not 0 <= validation < 1:
        raise ConfigError(f"--validation {validation:g}: it is a share of the drawn labels, 0 or more and less than 1")
    if validation == 0 and (schedule == "plateau" or patience):
        raise ConfigError(
            "--validation 0 leaves no loss for --schedule plateau or --patience to follow: choose --schedule cosine or"
            " constant and no --patience"
        )
    overrides, axes = overrides_of(settings), _axes(grid or [])
    expect_run(Path(run))
    from cluster.guards import check_machine
    from cluster.pipelines.cells import SHORT, Protocol, expect_free
    from cluster.pipelines.origin import Origin

    expect_free(overrides, "--set")
    expect_free((SHORT.get(key, key) for key in axes), "--grid")
    origin = Origin.of(run, checkpoint, train, overrides)
    given: dict[str, Any] = {
        "epochs": epochs,
        "batch.size": batch,
        "method.unfreeze": unfreeze,
        "method.hidden": hidden,
        "optim.name": optimizer,
        "optim.lr": lr,
        "optim.schedule": schedule or ("plateau" if validation else "cosine"),
        "optim.layer_decay": layer_decay,
        "optim.warmup_epochs": 0,
        **({"probe.patience": patience} if patience else {}),
        **({} if seed is None else {"seed": seed}),
    }
    protocol = Protocol(
        directory=(run_dir or Path("runs") / f"finetune-{origin.name}").absolute(),
        origin=origin,
        settings={**given, **overrides},
        grid=axes,
        starts=starts_of(starts, origin.weights is not None),
        seeds=seeds,
        labels=labels,
        validation=validation,
        stores=(train, test),
    )
    expect_folder(protocol.directory)
    check_machine(protocol.cells[0].config.cluster)
    from cluster.pipelines.finetune import fine_tune  # imports torch: a mistake above is told before

    rows = fine_tune(protocol, console)
    sentence = _sentence(protocol)
    _show(protocol, rows, sentence)
    conclude("fine-tuning", run, protocol, sentence, [row.plain() for row in rows], as_json)


def conclude(
    evaluation: str,
    run: str,
    protocol: Protocol | SemiProtocol,
    sentence: str,
    rows: Sequence[dict[str, Any]],
    as_json: bool,
) -> None:
    """Write the figures beside the runs, and print them with --json."""
    train, test = map(without_secrets, protocol.stores)
    result = {"evaluation": evaluation, "run": run, "train": train, "test": test, "protocol": sentence, "rows": rows}
    file = protocol.directory / "results.json"
    _keep_other(file, result)
    write_text(file, json.dumps(result, indent=1))
    say(f"{file} has these figures, and those of each run")
    print_json(result, as_json)


def _keep_other(file: Path, result: dict[str, Any]) -> None:
    """Rename a file with the results of other runs, stores or words, so that these do not replace them."""

    def asked(result: dict[str, Any]) -> list[Any]:
        runs = [one["run"] for row in result["rows"] for one in row["runs"]]
        return [result["train"], result["test"], result["protocol"], runs]

    try:
        is_other = asked(json.loads(file.read_text(encoding="utf-8"))) != asked(result)
    except (OSError, ValueError, KeyError, TypeError):
        return
    if is_other:
        kept = next(one for number in itertools.count(1) if not (one := file.with_stem(f"results-{number}")).exists())
        file.rename(kept)
        say(f"{kept} has the figures of the command before, which had other settings")


def _axes(grid: Sequence[str]) -> dict[str, list[Any]]:
    """Read ``--grid`` options as name -> values.

    Raises:
        ConfigError: one has no values, or a name that is neither short nor a dotted key, or is there twice.
    """
    from cluster.pipelines.cells import SHORT
    from ssl_dist.reading import Written

    axes, keys = dict[str, list[Any]](), set[str]()
    for text in grid:
        name, _, values = text.partition("=")
        given, key = [value.strip() for value in values.split(",")], SHORT.get(name, name)
        if key in keys or not all(given) or len(set(map(_as_number, given))) < len(given):
            raise ConfigError(f"--grid {text}: write it as NAME=A,B, each name and value once, as lr=1e-3,1e-4")
        if name not in SHORT and "." not in name:
            raise ConfigError(
                f"--grid {text}: NAME is one of {', '.join(SHORT)}, or a dotted key as optim.weight_decay"
            )
        axes[name] = [Written(value) for value in given]
        keys.add(key)
    return axes


def _as_number(text: str) -> float | str:
    """Return the number that a text is, so that 1e-3 and 0.001 are one; or the text."""
    try:
        return float(text)
    except ValueError:
        return text


def starts_of(given: str | None, has_weights: bool) -> list[str]:
    """Read ``--from``.

    Raises:
        ConfigError: it is none of its choices.
    """
    if given is None:
        return ["run"] if has_weights else ["random"]
    found = given.split(",")
    if not set(found) <= {"run", "random"} or len(set(found)) < len(found):
        raise ConfigError(f"--from {given}: it is run, random, or run,random")
    return found


def _show(protocol: Protocol, rows: Sequence[Row], sentence: str) -> None:
    """Print the table of the cells, with a column for each setting that varies, and the protocol below it."""
    has_top5 = any(row.scores.top5 is not None for row in rows)
    figures = [*(["validation"] if protocol.validation else []), "test top-1", "95 %"]
    figures += [*(["seeds"] if protocol.seeds > 1 else []), *(["top-5"] if has_top5 else [])]
    shown = table("from", *protocol.grid, *figures)
    for row in rows:
        mark = " *" if row.best else ""
        validation, top1, top5, _ = scores = row.scores
        validated = [] if validation is None else [f"{validation:.2%}{mark}"]
        spread = [] if scores.spread is None else [f"±{100 * scores.spread:.2f}"]
        others = [] if top5 is None else [f"{top5.value:.2%}"]
        given = [row.start, *map(str, row.settings.values())]
        shown.add_row(*given, *validated, f"{top1.value:.2%}", top1.interval, *spread, *others)
    console.print(shown)
    console.print(sentence, markup=False, highlight=False)


def named(origin: Origin, starts: Sequence[str]) -> str:
    """Name the weights that runs start from."""
    return " and ".join(f"{origin.name} (run)" if start == "run" else "random weights" for start in starts)


def _sentence(protocol: Protocol) -> str:
    """Say by which protocol the figures were found."""
    from cluster.pipelines.cells import SHORT

    train, test, truth = protocol.opened
    config = protocol.cells[0].config
    labelled, tested = int((train.labels >= 0).sum()), int((truth >= 0).sum())
    facts = {
        "method.unfreeze": f"unfreeze {config.method.model_dump()['unfreeze']}",
        "optim.lr": f"lr {config.optim.lr:g}",
        "batch.size": f"batch {config.batch.size}",
        "epochs": f"epochs {config.epochs:g}",
        "optim.name": config.optim.name,
        "optim.schedule": f"schedule {config.optim.schedule}",
        "augment.recipe": "whole images" if config.augment.recipe == "none" else f"views {config.augment.recipe}",
    }
    varied = {SHORT.get(key, key) for key in protocol.grid}
    fixed = ", ".join(text for key, text in facts.items() if key not in varied)
    held = "no validation, the last checkpoint is tested"
    if protocol.validation:
        number = protocol.num_validated
        surely = f"an accuracy on so few is sure to ±{98 / number**0.5:.0f} points"  # 1.96 standard deviations at most
        held = (
            f"{number:,} of them to validate on ({surely}), which chose the tested checkpoint of each run"
            f"{' and the best cell (*)' if protocol.grid else ''}"
        )
    drawn = f"{protocol.labels or 'all'} of {labelled:,} labels of {train.name}, drawn by class"
    repeats = f"; means of {protocol.seeds} seeds, ± their standard deviation" if protocol.seeds > 1 else ""
    return (
        f"Fine-tuned from {named(protocol.origin, protocol.starts)} with {fixed}, on {drawn}, {held}; tested on"
        f" {tested:,} images of {test.name}, which chose nothing{repeats}."
    )
