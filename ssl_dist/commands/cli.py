"""The commands that need no cluster: checkpoint, evaluate, report, and those that look at stores. Heavy imports happen
inside commands."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ssl_dist.commands.console import Json, console, image_progress, print_json, show
from ssl_dist.errors import RunError

if TYPE_CHECKING:
    from ssl_dist.evaluate import Comparison, Score

Run = Annotated[Path, typer.Argument(help="Run directory that `ssl-dist pretrain` printed.")]
Store = Annotated[str, typer.Argument(help="Folder of the store, or its URI (s3://bucket/store).")]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
store_app = typer.Typer(no_args_is_help=True, help="Build, look at and check image stores.")
evaluate_app = typer.Typer(no_args_is_help=True, help="Measure a run's frozen features beside random weights.")
checkpoint_app = typer.Typer(no_args_is_help=True, help="Look at and check a run's checkpoints.")
app.add_typer(store_app, name="store")
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(evaluate_app, name="evaluate")


@app.callback()
def _describe() -> None:
    """Pretrain an image encoder on unlabelled images: store -> pretrain -> evaluate."""


@store_app.command("info")
def store_info(store: Store, as_json: Json = False) -> None:
    """What is in a store."""
    from ssl_dist.store import manifest_at
    from ssl_dist.uris import without_secrets

    store_info_table(without_secrets(store), manifest_at(store).model_dump(exclude={"shards"}), as_json)


def store_info_table(store: str | Path, manifest: dict[str, Any], as_json: bool) -> None:
    height, width, _ = manifest["image_shape"]
    rows = {
        "images": f"{manifest['rows']:,} of {width} x {height} px",
        "classes": f"{len(manifest['class_names'])}: {', '.join(manifest['class_names'])}"
        if manifest["class_names"]
        else "none",
        "resize": manifest["resize"],
        "size": f"{manifest['bytes'] / 1e6:,.1f} MB, {manifest['encoding']}",
        "skipped": f"{manifest['skipped']} files",
    }
    show(f"{store} ({manifest['split']})", rows.items(), {"store": str(store), **manifest}, as_json)


@store_app.command("verify")
def store_verify(store: Store, as_json: Json = False) -> None:
    """Check every byte against its checksum; exit code 1 where something is damaged."""
    from ssl_dist.store import ImageStore

    opened = ImageStore(store, verify="off")
    damaged = opened.verify()
    for damage in damaged:
        first, stop = damage.rows
        what = (
            f"record batch {damage.batch}, samples {first}..{stop - 1}"
            if stop > first
            else "header or footer, no sample lost"
        )
        console.print(f"damaged: {damage.shard}, {what}", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"{opened.name}: {len(opened):,} images, {len(damaged)} damaged places",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if as_json:
        print_json({"store": opened.name, "rows": len(opened), "damaged": [damage._asdict() for damage in damaged]})
    if damaged:
        raise typer.Exit(1)


@checkpoint_app.command("list")
def checkpoint_list(run: Run, as_json: Json = False) -> None:
    """What can be gone on from, newest first. Reads no tensors: see `verify`."""
    from ssl_dist import checkpoint

    rows = [checkpoint.describe(path) for path in checkpoint.found(run)]
    _show_checkpoints(run, rows, as_json)


@checkpoint_app.command("verify")
def checkpoint_verify(run: Run, as_json: Json = False) -> None:
    """Check every byte against its checksum; exit code 1 where a checkpoint is damaged."""
    from ssl_dist import checkpoint
    from ssl_dist.errors import CheckpointError

    rows, whole = [], True
    for path in checkpoint.found(run):
        row = checkpoint.describe(path)
        try:
            checkpoint.verify(path)
            row["state"] = "whole"
        except CheckpointError as error:
            row["state"], whole = f"damaged: {error}", False
        rows.append(row)
    _show_checkpoints(run, rows, as_json)
    if not whole:
        raise typer.Exit(1)


def _show_checkpoints(run: Path, rows: list[dict[str, Any]], as_json: bool) -> None:
    if not rows:
        raise RunError(f"{run} has no checkpoints: give the directory of a run that has written one")
    checked = ["state"] if "state" in rows[0] else []
    table = Table("checkpoint", "score", "MB", "written", *checked)
    for row in rows:
        score = "" if row["score"] is None else f"{row['score']:.4f}"
        written = datetime.fromtimestamp(row["written"]).strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(row["name"], score, f"{row['bytes'] / 1e6:,.1f}", written, *(row[key] for key in checked))
    console.print(table)
    if as_json:
        print_json({"run": str(run), "checkpoints": rows})


@app.command()
def report(
    run: Run,
    out: Annotated[Path | None, typer.Option(help="Picture to write. Default: RUN/report.png.")] = None,
    as_json: Json = False,
) -> None:
    """Draw a run's loss, kNN, embedding and speed; print its last numbers."""
    from ssl_dist.report.curves import draw, read_metrics

    picture = out or run / "report.png"
    draw(run, picture)
    last: dict[str, Any] = {}
    for line in read_metrics(run):
        last |= line
    rows = {tag: f"{value:.6g}" for tag, value in last.items()}
    show(f"{run}: {picture}", rows.items(), {"run": str(run), "picture": str(picture), **last}, as_json)


TrainStore = Annotated[str, typer.Option("--train", help="Labelled store to learn from, a folder or a URI.")]
TestStore = Annotated[str, typer.Option("--test", help="Labelled store to be right on, a folder or a URI.")]


@evaluate_app.command("knn")
def evaluate_knn(
    run: Run,
    train: TrainStore,
    test: TestStore,
    k: Annotated[int, typer.Option(min=1, help="Neighbours that vote.")] = 20,
    as_json: Json = False,
) -> None:
    """k nearest neighbours by cosine similarity s, votes weighted by exp(s / 0.1)."""
    from ssl_dist.evaluate import knn_accuracy

    _evaluate(f"kNN, k = {k}", lambda *features: knn_accuracy(*features, k=k), run, train, test, as_json, needs=k)


@evaluate_app.command("linear")
def evaluate_linear(
    run: Run,
    train: TrainStore,
    test: TestStore,
    l2: Annotated[float, typer.Option(help="Weight penalty of the mean loss.")] = 1e-3,
    as_json: Json = False,
) -> None:
    """Multinomial logistic regression on standardised features."""
    from ssl_dist.evaluate import linear_accuracy

    _evaluate("linear probe", lambda *features: linear_accuracy(*features, l2=l2), run, train, test, as_json)


def _evaluate(name: str, score: Score, run: Path, train: str, test: str, as_json: bool, needs: int = 1) -> None:
    result = comparison(name, score, run, train, test, needs=needs)
    if as_json:
        print_json({"evaluation": name, **result._asdict()})


def comparison(name: str, score: Score, run: Path, train: str | Path, test: str | Path, *, needs: int) -> Comparison:
    """Trained beside random weights, with a bar while features are computed and a table at the end."""
    from ssl_dist.evaluate import compare

    with image_progress("embedding") as progress:
        result = compare(run, train, test, score, needs=needs, progress=progress)
    rows = {f"trained, {result.step} steps": f"{result.trained:.2%}", "random weights": f"{result.random:.2%}"}
    title = f"{name}: accuracy on {result.num_test:,} images, {result.num_train:,} labelled"
    show(title, rows.items(), {}, as_json=False)
    return result
