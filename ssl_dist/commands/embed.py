"""The command that computes the features of all images and writes them as a Parquet file."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ssl_dist.commands.console import ImageBar, image_bar, print_json, show
from ssl_dist.commands.options import Json, WhichCheckpoint
from ssl_dist.commands.table import CLUSTER_EXECUTOR, load
from ssl_dist.errors import Interrupted

if TYPE_CHECKING:
    from ssl_dist.embedding.table import Facts

_RUN = "Run directory, one of its checkpoints, the URI of either in the run's mirror, or an exported folder."
_STORE = "Image store, or anything that `store build` takes, by path, URI or pattern; no store is built of it."
_OUT = "Parquet file to write."
_MAP = "Add columns x and y: t-SNE of up to 5,000 images, and the others beside their nearest of these."
_NEIGHBOURS = "Add the keys and similarities of so many nearest other images of each image."
_CLUSTER = "Compute on all nodes of the Ray cluster of RAY_ADDRESS. They see RUN, STORE and OUT at the same paths."


def embed(
    run: Annotated[str, typer.Argument(metavar="RUN", help=_RUN)],
    store: Annotated[str, typer.Argument(metavar="STORE", help=_STORE)],
    out: Annotated[Path, typer.Argument(metavar="OUT.parquet", help=_OUT)],
    checkpoint: WhichCheckpoint = "newest",
    with_map: Annotated[bool, typer.Option("--map", help=_MAP)] = False,
    neighbours: Annotated[int, typer.Option(min=0, metavar="K", help=_NEIGHBOURS)] = 0,
    cluster: Annotated[bool, typer.Option("--cluster", help=_CLUSTER)] = False,
    as_json: Json = False,
) -> None:
    """Compute the features of all images of a store, a folder, tars or tables, as a Parquet file.

    A command that was killed goes on where it was. Files that are no readable images are left out, and named in
    OUT.parquet-left-out.txt.
    """
    from ssl_dist.report.pictures import expect_writable

    expect_writable(out, [".parquet"], "OUT")
    from ssl_dist.embedding import embed as embed_images
    from ssl_dist.embedding.tasks import run_here

    logging.getLogger("ssl_dist.store.building").setLevel(logging.INFO)  # it counts what is passed over
    stages = _Stages()
    try:
        done = embed_images(
            run,
            store,
            out,
            checkpoint=checkpoint,
            with_map=with_map,
            num_neighbours=neighbours,
            executor=load(CLUSTER_EXECUTOR)(stages.note) if cluster else run_here,
            stage=stages,
        )
    except KeyboardInterrupt:
        raise Interrupted("stopped; the same command goes on where it was") from None
    show(f"{out}{' was there already' if done.was_there else ''}", _rows(done.facts), {}, as_json=False)
    print_json({"out": str(out), "was_there": done.was_there, **done.facts.model_dump()}, as_json)


class _Stages:
    """The bars of the command, one after another."""

    def __init__(self) -> None:
        self._bar: ImageBar | None = None

    @contextlib.contextmanager
    def __call__(self, title: str, waiting: str) -> Iterator[ImageBar]:
        with image_bar(title, waiting) as self._bar:
            yield self._bar

    def note(self, text: str) -> None:
        if self._bar:
            self._bar.add_note(text)


def _rows(facts: Facts) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [
        ("images", f"{facts.num_images:,} of {facts.store}"),
        ("left out", f"{facts.left_out:,} files"),
        ("features", f"{facts.dim:,}, of {facts.run}" + ("" if facts.step is None else f", step {facts.step:,}")),
    ]
    if facts.map:
        rows.append(("x, y", facts.map))
    if facts.neighbours:
        rows.append(("neighbours", f"{min(facts.neighbours, facts.num_images - 1):,} of each image, exact"))
    return rows
