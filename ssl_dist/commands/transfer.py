"""The command that measures one encoder on several labelled stores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column
from rich.text import Text

from ssl_dist.commands.console import console, image_bar, print_json, table
from ssl_dist.commands.options import Json, RunOrCheckpoint, WhichCheckpoint
from ssl_dist.errors import ConfigError

if TYPE_CHECKING:
    from ssl_dist.evaluate.compare import Comparison
    from ssl_dist.evaluate.protocols import EvaluationProtocol

_SHARE = "Share of each class that is held out to measure on."
_SEED = "Seed of that draw."


def transfer(
    run: RunOrCheckpoint,
    stores: Annotated[list[str], typer.Argument(metavar="STORE...", help="Labelled stores, folders or URIs.")],
    k: Annotated[int, typer.Option(min=1, help="Neighbours that vote.")] = 20,
    share: Annotated[float, typer.Option(help=_SHARE)] = 0.25,
    seed: Annotated[int, typer.Option(min=0, help=_SEED)] = 0,
    checkpoint: WhichCheckpoint = "newest",
    as_json: Json = False,
) -> None:
    """Measure one encoder on several labelled stores, by kNN and a linear probe, beside random weights.

    Of each store a part of every class is held out; the classifiers learn from the rest.
    """
    from ssl_dist.checkpoint import locate
    from ssl_dist.evaluate.compare import Options, compare_on
    from ssl_dist.evaluate.labelled import split_in_two
    from ssl_dist.evaluate.protocols import Knn, Linear
    from ssl_dist.uris import without_secrets

    if not 0 < share < 1:
        raise ConfigError(f"--share {share:g}: it is between 0 and 1, as 0.25")
    found = locate(run, checkpoint)
    data, shape = found.config.data, found.config.facts.image_shape
    pairs = {store: split_in_two(store, data, shape, share, seed) for store in stores}
    protocols: list[EvaluationProtocol] = [Knn(k), Linear()]
    for known, _ in pairs.values():
        for protocol in protocols:
            protocol.check(known.labels)
    results: dict[str, Sequence[Comparison]] = {}
    for number, (store, pair) in enumerate(pairs.items(), 1):
        with image_bar(f"embedding, store {number} of {len(pairs)}", "reading the checkpoint") as bar:
            results[without_secrets(store)] = compare_on(found, pair, protocols, Options(checkpoint=checkpoint), bar)
    _show(results, f"{run}: transfer to {len(results)} store{'s' * (len(results) > 1)}")
    plain = [{"store": store, "results": [one.plain() for one in some]} for store, some in results.items()]
    print_json({"run": str(run), "step": found.step, "stores": plain}, as_json)


def _show(results: dict[str, Sequence[Comparison]], title: str) -> None:
    """Print the table, with a row for each encoder on each store, accuracy above interval; and the protocols."""
    console.print(title, style="bold", markup=False, highlight=False, soft_wrap=True)
    names = [one.name for one in next(iter(results.values()))]
    columns = (Column(name, justify="right", no_wrap=True) for name in names)
    shown = table("store", "encoder", *columns)
    for store, some in results.items():
        for number, row in enumerate(some[0].rows):
            found = [one.rows[number].top1 for one in some]
            cells = [f"{top1.value:.2%}\n{top1.interval}" for top1 in found]
            shown.add_row(Text(store if not number else ""), Text(row.encoder), *cells)
    console.print(shown)
    for some in results.values():
        for one in some:
            console.print(f"{one.name}: {one.protocol}", markup=False, highlight=False)
