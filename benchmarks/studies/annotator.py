"""Stand-in for the people who label: it knows the true classes, and writes them where a command asks for labels.

    python -m benchmarks.studies.annotator draw stores/cifar10-train few.csv --per-class 32
    python -m benchmarks.studies.annotator answer stores/cifar10-train request/labels.csv answers.csv

Both print one JSON object. Only images of the training part are labelled.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from ssl_dist.files import write_text
from ssl_dist.store import ImageStore

app = typer.Typer(add_completion=False)
Json = Annotated[bool, typer.Option("--json", help="It is printed anyway.")]


@app.command()
def draw(store: str, file: Path, per_class: int = 32, seed: int = 0, as_json: Json = False) -> None:
    """Write the keys and classes of some images of each class, drawn at random."""
    opened, random = ImageStore(store), np.random.default_rng(seed)
    labels = opened.labels
    drawn = [
        random.choice(np.flatnonzero(labels == one), per_class, replace=False) for one in range(len(opened.class_names))
    ]
    ids = np.sort(np.concatenate(drawn))
    _write(file, zip(opened.keys_at(ids), (opened.class_names[label] for label in labels[ids]), strict=True))


@app.command()
def answer(store: str, request: Path, file: Path, as_json: Json = False) -> None:
    """Write the true classes of the keys in a request for labels."""
    opened = ImageStore(store)
    with request.open(encoding="utf-8", newline="") as content:
        asked = {row["key"] for row in csv.DictReader(content)}
    keys = opened.keys_at(np.arange(len(opened)))
    true = [
        (key, opened.class_names[label])
        for key, label in zip(keys, opened.labels.tolist(), strict=True)
        if key in asked
    ]
    if len(true) < len(asked):
        raise SystemExit(f"error: {store} lacks {len(asked) - len(true)} of the keys in {request}")
    _write(file, true)


def _write(file: Path, lines: Iterable[tuple[str, str]]) -> None:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerows([("key", "label"), *lines])
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text.getvalue())
    print(json.dumps({"file": str(file), "labels": text.getvalue().count("\n") - 1}))


if __name__ == "__main__":
    app()
