"""The command that asks for labels: it chooses images of a store and writes a page on which a person labels them."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssl_dist.commands.console import errors, image_bar, print_json, say, show, waiting
from ssl_dist.commands.options import Json, RunOrCheckpoint, WhichCheckpoint
from ssl_dist.commands.runs import evaluate_line
from ssl_dist.errors import ConfigError
from ssl_dist.files import free_folder, new_folder
from ssl_dist.selection.strategies import STRATEGIES, expect_known

if TYPE_CHECKING:
    from ssl_dist.checkpoint import Checkpoint
    from ssl_dist.selection.pool import Selection
    from ssl_dist.selection.recommended import Gain
    from ssl_dist.selection.request import Candidates

_STRATEGY = f"One of {', '.join(STRATEGIES)}. Default: random, or one that was measured to be better."
_OUT = "Folder to write, new or empty. Default: RUN/label-request-STRATEGY-COUNT."


def label_request(
    run: RunOrCheckpoint,
    store: Annotated[str, typer.Argument(help="Folder of the store whose images are labelled next.")],
    count: Annotated[int, typer.Option(min=1, help="Images to request.")],
    strategy: Annotated[str | None, typer.Option(help=_STRATEGY)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all that is random.")] = 0,
    out: Annotated[Path | None, typer.Option(help=_OUT)] = None,
    checkpoint: WhichCheckpoint = "newest",
    as_json: Json = False,
) -> None:
    """Choose unlabelled images of a store to label next, by the features of a run's encoder.

    Writes index.html, on which a person labels them, labels.csv, and keys.txt.
    """
    if strategy is not None:
        expect_known(strategy)
    if out is not None:
        out = free_folder(out, "--out", "give a new folder")
    from ssl_dist.checkpoint import locate, run_directory
    from ssl_dist.report.label_page import write_pages
    from ssl_dist.selection.recommended import nearest_budget, recommend
    from ssl_dist.selection.request import Candidates, write_table

    found = locate(run, checkpoint)
    candidates = Candidates.of(found, store)
    total = int((candidates.labels >= 0).sum()) + count
    best = recommend(total, from_none=candidates.num_classes < 2)
    recommended = _described(best, nearest_budget(total), total)
    chosen = strategy or recommended["strategy"]
    candidates.expect_possible(chosen, count)
    if out is None:
        default = run_directory(run) / f"label-request-{chosen}-{count}"
        out = free_folder(default, "the default folder", "choose another with --out")
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)  # now: choosing may take long
    try:
        selection = _choose(found, candidates, chosen, count, seed)
    except BaseException:
        with contextlib.suppress(OSError):
            out.rmdir()  # an empty folder would look like a request
        raise
    keys, images = [candidates.keys[row] for row in selection.rows], candidates.store
    title, then = f"{count:,} images of {Path(store).name} to label", f"ssl-dist store label {shlex.quote(store)}"
    with _writing(out), new_folder(out) as aside:
        write_table(aside, keys)
        pages = write_pages(aside, title, keys, images, selection.rows, f"{then} labels.csv")
    rows = {
        "strategy": f"{chosen}: {STRATEGIES[chosen].rule}",
        "recommended": f"{recommended['strategy']}: {recommended['reason']}",
        "labelled before": f"{total - count:,} of {len(images):,} images",
        "pages": ", ".join(pages) if len(pages) < 4 else f"index.html to {pages[-1]}",
    }
    show(f"{title}: {out}", rows.items(), {}, as_json=False)
    page = (
        f"Label them on {out / 'index.html'}, which saves a labels.csv, or write classes into the one beside it. Then:"
    )
    given = f"{then} {shlex.quote(str(out / 'labels.csv'))}"
    for line in (*filter(None, [selection.note]), page, given, evaluate_line(run, store)):
        say(line)
    result = {"run": str(run), "store": store, "out": str(out), "strategy": chosen, "count": count, "seed": seed}
    more = {"step": found.step, "labelled": total - count, "pages": pages, "note": selection.note}
    print_json({**result, **more, "recommended": recommended}, as_json)


def _choose(found: Checkpoint, candidates: Candidates, strategy: str, count: int, seed: int) -> Selection:
    """Embed the images with a bar, unless they are drawn at random, and choose among them."""
    import numpy as np

    features = np.empty((len(candidates.rows), 0), np.float32)
    if strategy != "random":
        with image_bar("embedding", "reading the checkpoint") as bar:
            features = candidates.features(found, bar)
    with waiting(f"choosing {count:,} images by {strategy}", errors):
        return candidates.choose(strategy, features, count, seed)


def _described(best: Gain | None, budget: int | None, total: int) -> dict[str, Any]:
    """Return what the package's table of measurements recommends, with its reason, for JSON.

    Args:
        budget: that of the table which is nearest to ``total``; None: nothing was measured.
        total: labels with the requested ones.
    """
    if budget is None:
        return {"strategy": "random", "reason": "nothing was measured"}
    where = f"of the numbers measured, {budget:,} labels are nearest to your {total:,};"
    if best is None:
        reason = f"{where} there nothing beats random beyond the 95 % interval"
        return {"strategy": "random", "budget": budget, "reason": reason}
    points = (f"{100 * value:+.1f}" for value in (best.mean, best.low, best.high))
    gain = "{0} points over random on {3} ({1} to {2}, 95 % for all strategies together)".format(*points, best.store)
    return {**best._asdict(), "reason": f"{where} there {gain}"}


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Raise ConfigError where the block cannot write into the folder."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"--out {folder} cannot be written ({error.strerror})") from None
