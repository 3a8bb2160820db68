"""A run as a picture: what one looks at first, from metrics.jsonl alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")  # no screen needed
import matplotlib.pyplot as plt

from ssl_dist.errors import RunError
from ssl_dist.training.monitor import METRICS

_PANELS = (
    ("loss", ("train/loss",)),
    ("online probe", ("probe/knn", "probe/linear", "probe/rankme", "probe/lidar")),
    ("embedding", ("embedding/alignment", "embedding/uniformity", "embedding/std")),
    ("images/s", ("speed/images_per_s",)),
)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl.

    Raises:
        RunError: no such run, or nothing written yet.
    """
    try:
        lines = [json.loads(line) for line in (run / METRICS).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise RunError(f"{run} is not a run directory with metrics ({error})") from None
    if not lines:
        raise RunError(f"{run / METRICS} is empty: the run has not reached its first step")
    return lines


def draw(run: Path, picture: Path) -> None:
    """Write a PNG (or whatever the name's ending says) of the run's curves over epochs.

    Raises:
        RunError: no such run, or the picture cannot be written.
    """
    lines = read_metrics(run)
    figure, axes = plt.subplots(1, len(_PANELS), figsize=(4 * len(_PANELS), 3), layout="constrained")
    for axis, (title, tags) in zip(axes, _PANELS, strict=True):
        for tag in tags:
            points = [(line["epoch"], line[tag]) for line in lines if tag in line]
            if points:
                axis.plot(
                    *zip(*points, strict=True), marker="." if len(points) < 20 else "", label=tag.partition("/")[2]
                )
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
        if len(axis.lines) > 1:
            axis.legend()
    try:
        figure.savefig(picture, dpi=110)
    except (OSError, ValueError) as error:
        raise RunError(f"picture {picture} cannot be written ({error})") from None
    finally:
        plt.close(figure)
