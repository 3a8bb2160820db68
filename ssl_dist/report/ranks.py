"""Curves of the measures without labels over the checkpoints of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ssl_dist.evaluate.over_training import RankRow
from ssl_dist.report.pictures import save

_PANELS = (
    ("effective rank", {"rankme": "RankMe", "lidar": "LiDAR"}),
    ("alpha-ReQ", {"alpha": "alpha"}),
    ("alignment, uniformity", {"alignment": "alignment", "uniformity": "uniformity"}),
    (
        "effective dimensions",
        {"participation": "participation ratio", "components_90": "90 % of variance", "components_99": "99 %"},
    ),
)


def draw_ranks(rows: Sequence[RankRow], picture: Path) -> None:
    """Write a picture of the measures over steps; a dashed line of each colour is that of the random weights.

    Raises:
        RunError: the picture cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(_PANELS), 3), layout="constrained")  # pyplot would choose a screen
    random, trained = rows[0].ranks, [row for row in rows if row.step is not None]
    steps = [row.step for row in trained]
    for axis, (title, measures) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        for field, name in measures.items():
            [line] = axis.plot(steps, [getattr(row.ranks, field) for row in trained], marker="o", ms=4, label=name)
            axis.axhline(getattr(random, field), ls="--", lw=1, color=line.get_color())
        axis.plot([], [], ls="--", lw=1, color="grey", label="random weights")
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    save(figure, picture)
