"""The command that shows the nearest images in a file that ``ssl-dist embed`` has written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column
from rich.text import Text

from ssl_dist.commands.console import console, errors, print_json, say, table, waiting
from ssl_dist.commands.options import Json
from ssl_dist.errors import ConfigError

if TYPE_CHECKING:
    from ssl_dist.embedding.query import Neighbour, Query
    from ssl_dist.embedding.table import EmbeddingTable, Row

_TABLE = "File that `ssl-dist embed` has written."
_IMAGE = "Key of an image of the file, or a picture file (JPEG, PNG, WebP, BMP)."
_INDEX = "exact: reads the whole file. faiss, usearch: an index beside the file, made once; its recall is measured."
_STORE = "Where the images of --out are read. Default: where the file says."
_RUN = "Run or checkpoint of a picture file's features. Default: what the file says."
_LEAST_PX = 96  # side of images that are decoded for the picture


def neighbours(
    path: Annotated[Path, typer.Argument(metavar="OUT.parquet", help=_TABLE)],
    image: Annotated[str, typer.Argument(metavar="IMAGE", help=_IMAGE)],
    count: Annotated[int, typer.Option(min=1, help="Images that are shown.")] = 10,
    out: Annotated[Path | None, typer.Option(metavar="PICTURE.png", help="Picture of the images in a row.")] = None,
    index: Annotated[str, typer.Option(metavar="exact|faiss|usearch", help=_INDEX)] = "exact",
    store: Annotated[str | None, typer.Option(help=_STORE)] = None,
    run: Annotated[str | None, typer.Option(help=_RUN)] = None,
    as_json: Json = False,
) -> None:
    """Show the images whose features are nearest to an image's, by cosine similarity."""
    from ssl_dist.report.pictures import expect_writable

    if out:
        expect_writable(out, [".png"])
    elif store:
        raise ConfigError("--store names where the images of a picture are read: give --out, too")
    from ssl_dist.embedding.index import MEASURED, Index, expect_known
    from ssl_dist.embedding.query import neighbours_of, query_of
    from ssl_dist.embedding.table import EmbeddingTable

    expect_known(index)
    opened = EmbeddingTable(path)
    with waiting("reading the image", errors) as report:
        query = query_of(opened, image, run)
        graph, recall = None, 1.0
        if index != "exact":
            report(f"making or reading the index by {index}")
            graph = Index(opened, index)
            recall = graph.recall(count)
        report("searching")
        found = neighbours_of(opened, query, count, graph)
        if out:
            report("drawing")
            _draw(opened, query, found, store, out)
    what = f"image {query.row.number} of the file" if query.row else "a picture file"
    say(f"nearest to {image}, {what}")
    shown = table(Column("", justify="right"), "key", "label", Column("similarity", justify="right"))
    for number, one in enumerate(found, 1):
        shown.add_row(str(number), Text(one.row.key), Text(_label(one.row)), f"{one.similarity:.4f}")
    console.print(shown)
    if graph:
        say(
            f"index by {index}: recall at {count} {recall:.1%}, the share of the exact neighbours that it finds, of up"
            f" to {MEASURED} images of the file; its similarities are exact"
        )
    if out:
        say(f"picture: {out}")
    result: dict[str, Any] = {
        "table": str(path),
        "image": image,
        "row": query.row.number if query.row else None,
        "index": index,
        "recall": recall,
        "neighbours": [_as_json(one) for one in found],
        "picture": str(out) if out else None,
    }
    print_json(result, as_json)


def _label(row: Row) -> str:
    return row.class_ or ("" if row.label is None else str(row.label))


def _as_json(one: Neighbour) -> dict[str, Any]:
    row = one.row
    known = {"row": row.number, "key": row.key, "label": row.label, "class": row.class_}
    return {**known, "similarity": one.similarity}


def _draw(opened: EmbeddingTable, query: Query, found: Sequence[Neighbour], store: str | None, out: Path) -> None:
    """Draw the query and its neighbours.

    Raises:
        ConfigError: the images are not there any more.
        SourceError, StoreError: nothing can be read there.
    """
    from ssl_dist.embedding.images import pictures_of
    from ssl_dist.report.neighbours import draw_neighbours
    from ssl_dist.store.decode import decode

    where, size_px = store or opened.facts.store, max(_LEAST_PX, opened.facts.image_size)
    rows = [*([query.row] if query.row else []), *(one.row for one in found)]
    images = pictures_of(where, [row.number for row in rows], [row.key for row in rows], size_px)
    if lost := [row.key for row, image in zip(rows, images, strict=True) if image is None]:
        raise ConfigError(f"{where} has no image {lost[0]} as {opened.path} has it: name the images' place by --store")
    texts = [f"{_label(one.row)}\n{one.similarity:.3f}" for one in found]
    if query.file:
        images.insert(0, decode(query.file.read_bytes(), size_px))
        texts.insert(0, query.file.name)
    elif query.row:
        texts.insert(0, f"{_label(query.row)}\n{query.row.key}")
    draw_neighbours([image for image in images if image is not None], texts, out)
