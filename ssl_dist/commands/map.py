"""The command that draws maps of a run's features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column

from ssl_dist.commands.console import console, errors, image_bar, print_json, say, table, waiting
from ssl_dist.commands.options import Json, RunOrCheckpoint, WhichCheckpoints

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ssl_dist.evaluate.maps import Panel

_PERPLEXITY = "Effective number of neighbours of an image (of UMAP, n_neighbors)."
_COLOUR = (
    "class (the store's labels), prediction (by the run's classifier, or by the nearest labelled images), or cluster"
    " (k-means). Default: class, or cluster where there are no labels."
)


def map_(
    run: RunOrCheckpoint,
    store: Annotated[str, typer.Option(help="Store whose images are drawn, a folder or a URI.")],
    out: Annotated[
        Path | None, typer.Option(help="Picture (.png) or interactive page (.html). Default: RUN/map.png.")
    ] = None,
    checkpoint: WhichCheckpoints = "newest",
    images: Annotated[int, typer.Option(min=2, help="Images, drawn by the seed, of each class by its share.")] = 2000,
    method: Annotated[str, typer.Option(help="tsne, or umap where umap-learn is installed.")] = "tsne",
    perplexity: Annotated[float, typer.Option(help=_PERPLEXITY)] = 30,
    colour: Annotated[str | None, typer.Option(help=_COLOUR)] = None,
    clusters: Annotated[
        int | None, typer.Option(min=1, help="Clusters of --colour cluster. Default: as many as classes, or 10.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the drawn images, the map and the clusters.")] = 0,
    as_json: Json = False,
) -> None:
    """Draw images by their features in the plane, as a picture or as a page that shows them.

    --checkpoint all makes a map of the random weights and of up to eight checkpoints, each begun from the one before.
    """
    from ssl_dist.checkpoint import run_directory
    from ssl_dist.evaluate.labelled import open_images
    from ssl_dist.evaluate.maps import Settings, embed_over_training, layouts, share_beside_their_own, spread_evenly
    from ssl_dist.evaluate.over_training import checkpoints_of, drawn
    from ssl_dist.report.pictures import expect_writable

    whole_run = checkpoint == "all"
    checkpoints = spread_evenly(checkpoints_of(run, checkpoint))
    picture = out or run_directory(run) / "map.png"
    expect_writable(picture, [".png", ".html"])
    config = checkpoints[-1].config
    opened = open_images(store, config.data, config.facts.image_shape)
    ids = drawn(images, len(opened), seed, opened.labels)
    labels = opened.labels[ids]
    colour = colour or ("class" if (labels >= 0).any() else "cluster")
    settings = Settings(method, perplexity, colour, clusters or min(len(opened.class_names) or 10, len(ids)), seed)
    settings.expect_possible(config, labels, opened.name)
    with image_bar("embedding", "reading checkpoints") as bar:
        components, groups = embed_over_training(
            checkpoints, opened, ids, settings, with_random=whole_run, progress=bar
        )
    with waiting("making the map", errors) as report:
        panels = layouts(components, settings, report)
    name = f"{'t-SNE' if method == 'tsne' else 'UMAP'} of {len(ids):,}"
    how = f"perplexity {perplexity:g}, seed {seed}"
    title = f"{run_directory(run).absolute().name}: {name} images, {how}"
    if picture.suffix.lower() == ".png":
        from ssl_dist.report.maps import draw_maps

        draw_maps(panels, groups, title, picture)
    else:
        from ssl_dist.report.map_page import write_page

        write_page(panels, groups, title, opened, ids, picture)
    rows = groups.grouped
    shares = [share_beside_their_own(panel.points[rows], groups.numbers[rows]) for panel in panels]
    _show(panels, shares)
    [dimensions] = {x.shape[1] for x in components.values()}
    by = "" if colour == "class" else f", by {panels[-1].title}"
    protocol = (
        f"{name} of {len(opened):,} images of {opened.name}, from the first {dimensions} principal components of"
        f" backbone features; {how}. Colours: {groups.title}{by}, of {int(rows.sum()):,} images."
    )
    console.print(protocol, markup=False, highlight=False)
    say(f"map: {picture}")
    found = {"run": str(run), "store": opened.name, "images": len(ids), **settings._asdict(), "groups": groups.title}
    maps = [{"step": panel.step, "same_colour": share} for panel, share in zip(panels, shares, strict=True)]
    print_json({**found, "picture": str(picture), "maps": maps}, as_json)


def _show(panels: Sequence[Panel], shares: Sequence[float]) -> None:
    """Print the table: a row for each map."""
    shown = table("weights", Column("nearest neighbour has the same colour", justify="right"))
    for panel, share in zip(panels, shares, strict=True):
        shown.add_row(panel.title, f"{share:.1%}")
    console.print(shown)
