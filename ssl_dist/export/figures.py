"""Accuracies that were measured of an encoder, from the files that evaluations leave beside its run."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ssl_dist.checkpoint import run_directory
from ssl_dist.export.facts import last_name
from ssl_dist.uris import is_remote

_RESULTS = "results.json"  # of ``evaluate finetune`` and ``evaluate semi``, in the folder of their runs

log = logging.getLogger(__name__)


class Figure(NamedTuple):
    """An accuracy, what it is of, and the sentence that says how it was measured.

    Attributes:
        measure, encoder, features: in words.
        top1: in [0, 1].
        interval: of 95 %, in [0, 1]; None where it was not measured for this run alone.
        protocol: one sentence or more.
    """

    measure: str
    encoder: str
    features: str
    top1: float
    interval: tuple[float, float] | None
    protocol: str


def figures_of(run: str | Path, step: int) -> list[Figure]:
    """Return what was measured of one step of a run; a file that is damaged is named in the log."""
    if is_remote(run):
        return []
    from ssl_dist.report.evaluation import FILE

    folder = run_directory(Path(run)).absolute()
    return [
        *_read(folder / FILE, lambda content: _evaluated(content, step)),
        *_read(folder.parent / _RESULTS, lambda content: _tested(content, folder.name, step)),
    ]


def _read(file: Path, figures: Callable[[Any], list[Figure]]) -> list[Figure]:
    if not file.exists():
        return []
    try:
        return figures(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s: passed over, because it is not as `evaluate` writes it (%r)", file, error)
        return []


def _evaluated(content: Any, step: int) -> list[Figure]:
    """Return the figures of ``evaluate all``, if they are of this step."""
    if int(content["step"]) != step:
        return []
    stores = [content[part] for part in ("train", "test") if content.get(part)]  # earlier versions have not named them
    return [
        Figure(
            *(one["evaluation"], row["encoder"], row["features"], float(row["top1"]), _interval(row)),
            _without_folders(one["protocol"], stores),
        )
        for one in content["accuracies"]
        for row in one["rows"]
    ]


def _tested(content: Any, run: str, step: int) -> list[Figure]:
    """Return the figures of the classifier that ``evaluate finetune`` or ``evaluate semi`` tested of this run."""
    protocol = _without_folders(content["protocol"], [content["train"], content["test"]])
    return [
        Figure(
            *(content["evaluation"], f"trained, {step:,} steps", "classifier", float(one["top1"])),
            _interval(row) if len(row["runs"]) == 1 else None,
            protocol,
        )
        for row in content["rows"]
        for one in row["runs"]
        if Path(one["run"]).name == run and one["step"] == step
    ]


def _without_folders(text: str, stores: Sequence[str]) -> str:
    """Return a text with the names of stores in place of their paths: a card goes to strangers."""
    for store in sorted(stores, key=len, reverse=True):  # one path may begin another
        text = text.replace(store, last_name(store))
    return text


def _interval(row: Any) -> tuple[float, float]:
    low, high = row["top1_interval"]
    return float(low), float(high)
