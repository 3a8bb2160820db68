"""Curves of a run, drawn from its metrics.jsonl alone: loss, probe, embedding statistics, speed."""

from __future__ import annotations

from pathlib import Path

from ssl_dist.report.pictures import save
from ssl_dist.training.metrics import read_metrics

_PANELS = (
    ("loss", ("train/loss",)),
    ("online probe", ("probe/knn", "probe/linear", "probe/rankme", "probe/lidar", "probe/validation")),
    ("embedding", ("embedding/alignment", "embedding/uniformity", "embedding/std")),
    ("images/s", ("speed/images_per_s",)),
)


def draw(run: Path, picture: Path) -> None:
    """Write a picture of the run's curves over epochs, as PNG or in the format of the name's ending.

    Raises:
        RunError: there is no such run, or the picture cannot be written.
    """
    lines = read_metrics(run)
    from matplotlib.figure import Figure  # here: a mistake is told before

    figure = Figure(figsize=(4 * len(_PANELS), 3), layout="constrained")  # pyplot would choose a screen
    axes = figure.subplots(1, len(_PANELS))
    for axis, (title, tags) in zip(axes, _PANELS, strict=True):
        for tag in tags:
            points = [(line["epoch"], line[tag]) for line in lines if tag in line]
            if points:
                marker = "." if len(points) < 20 else ""
                axis.plot(*zip(*points, strict=True), marker=marker, label=tag.partition("/")[2])
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
        if len(axis.lines) > 1:
            axis.legend()
    save(figure, picture)
