"""The command that measures a run's features without labels, over its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column

from ssl_dist.commands.console import console, image_bar, print_json, say, table
from ssl_dist.commands.options import Json, RunOrCheckpoint, WhichCheckpoints
from ssl_dist.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ssl_dist.evaluate.over_training import RankRow

_COLUMNS = {
    "rankme": ("RankMe", "{:.1f}"),
    "lidar": ("LiDAR", "{:.1f}"),
    "alpha": ("alpha", "{:.2f}"),
    "alignment": ("align", "{:.3f}"),
    "uniformity": ("uniform", "{:.2f}"),
    "participation": ("part.", "{:.1f}"),
    "components_90": ("90 %", "{}"),
    "components_99": ("99 %", "{}"),
}
_MEANING = (
    "Higher RankMe, LiDAR, participation ratio (part.) and numbers of components that hold 90 and 99 % of the variance:"
    " more directions are used. Lower uniform: images are further apart; lower align, at the same uniform: views of an"
    " image agree more. Alpha is best at about 1 by its paper; if it is larger, few directions hold most."
)
_VIEWS = "Random views of each image, for LiDAR and alignment; LiDAR's paper has 50."


def rank(
    run: RunOrCheckpoint,
    store: Annotated[
        str, typer.Option(help="Store whose images are embedded, a folder or a URI; labels are not used.")
    ],
    checkpoint: WhichCheckpoints = "all",
    images: Annotated[int, typer.Option(min=2, help="Images, drawn from the store by the seed.")] = 4096,
    views: Annotated[int, typer.Option(min=2, help=_VIEWS)] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the drawn images and of the views.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="PNG of the curves. Default: RUN/rank.png where there are several checkpoints.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure features without labels over a run's checkpoints, beside random weights.

    RankMe, LiDAR, alpha-ReQ, alignment, uniformity, effective dimensions.
    """
    from ssl_dist.checkpoint import run_directory
    from ssl_dist.evaluate.labelled import open_images
    from ssl_dist.evaluate.over_training import checkpoints_of, drawn, rank_curve
    from ssl_dist.report.pictures import expect_writable

    checkpoints = checkpoints_of(run, checkpoint)
    picture = out or (run_directory(run) / "rank.png" if len(checkpoints) > 1 else None)
    if picture:
        expect_writable(picture, [".png"])
    config = checkpoints[-1].config
    opened = open_images(store, config.data, config.facts.image_shape)
    if len(opened) < 2:
        raise StoreError(f"{opened.name} has one image: a rank is of two or more")
    ids = drawn(images, len(opened), seed)
    with image_bar("embedding images and views", "reading checkpoints") as bar:
        rows = rank_curve(checkpoints, opened, ids, views=views, seed=seed, progress=bar)
    console.print(f"{run}: features without labels", style="bold", markup=False, highlight=False, soft_wrap=True)
    show_ranks(rows)
    protocol = (
        f"Backbone features of {len(ids):,} of {len(opened):,} images of {opened.name} drawn with seed {seed}: whole"
        f" images, but for LiDAR {views} random views of each by policy {config.augment.recipe}, and for align two of"
        " these."
    )
    for sentence in (protocol, _MEANING):
        console.print(sentence, markup=False, highlight=False)
    if picture:
        from ssl_dist.report.ranks import draw_ranks

        draw_ranks(rows, picture)
        say(f"curves: {picture}")
    found = {"run": str(run), "store": opened.name, "images": len(ids), "views": views, "seed": seed}
    result = {**found, "policy": config.augment.recipe, "picture": picture and str(picture)}
    print_json({**result, "rows": [_plain(row) for row in rows]}, as_json)


def show_ranks(rows: Sequence[RankRow]) -> None:
    """Print the table: a row for each encoder."""
    shown = table("step", *(Column(name, justify="right") for name, _ in _COLUMNS.values()))
    for row in rows:
        values = (form.format(getattr(row.ranks, field)) for field, (_, form) in _COLUMNS.items())
        shown.add_row("random" if row.step is None else f"{row.step:,}", *values)
    console.print(shown)


def _plain(row: RankRow) -> dict[str, Any]:
    weights = "random" if row.step is None else "trained"
    return {"step": row.step, "weights": weights, **row.ranks._asdict()}
