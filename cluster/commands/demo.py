"""The command that shows the whole way on images that need no download."""

from __future__ import annotations

import tempfile
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from ssl_dist.commands.console import print_json, say
from ssl_dist.commands.options import Json, Settings, overrides_of


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the stores and the run.")] = Path("runs/demo"),
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Pretrain on scikit-learn's 1,797 digits with 2 workers; downloads nothing. Shows kNN before and after."""
    from ssl_dist.config import RunConfig

    out = out / f"{datetime.now():%Y%m%d-%H%M%S}"
    stores = {split: out / f"store-{split}" for split in ("train", "test")}
    overrides = {"data.store": str(stores["train"]), **overrides_of(settings)}
    RunConfig.load("simclr-digits", overrides)  # a mistake is told before anything is built or imported

    from cluster.commands import digits
    from cluster.commands.pretrain import train
    from cluster.prepare import resolve
    from cluster.run_directory import RunDirectory
    from ssl_dist.commands.evaluate import show_comparisons
    from ssl_dist.evaluate import Knn, Linear
    from ssl_dist.report import evaluation
    from ssl_dist.report.page import RunFiles, write_page
    from ssl_dist.store import build

    with tempfile.TemporaryDirectory() as folder:
        digits.write_folders(Path(folder))
        for split, store in stores.items():
            build(Path(folder) / split, store, split=split, workers=1)
    config = resolve("simclr-digits", overrides)
    run = RunDirectory.create(out / "run", config, "simclr-digits")
    train(run, config, as_json=False)
    results = show_comparisons([Knn(), Linear()], run.path, stores["train"], stores["test"])
    from ssl_dist.evaluate.everything import Everything

    no_time = {"ranks and a map": "the demo does not wait for them"}
    evaluation.write(run.path, Everything(results, None, 0, None, no_time, 0.0))
    page = run.path / "report.html"
    write_page([RunFiles.read(run.path)], "", page)
    say(f"TensorBoard's logs: {run.path / 'tensorboard'}")
    say(f"its report, a page to open in a browser: {page}")
    print_json({"run": str(run.path), "report": str(page), **results[0].plain()}, as_json)
