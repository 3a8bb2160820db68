"""The charts of a report: which of a run's numbers are drawn together, and how they are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ssl_dist.report.page.charts import Chart, chart
from ssl_dist.report.page.run_files import RunFiles


class Panel(NamedTuple):
    """A chart's title, what its values mean, and the name of each tag's line.

    Attributes:
        lines: by tag.
        percent: whether values are shares.
    """

    title: str
    note: str
    lines: dict[str, str]
    percent: bool = False


PANELS = (
    Panel(
        "Loss",
        "Lower is better for one run. Losses of other batch sizes and temperatures do not compare.",
        {
            "train/loss": "training",
            "train/loss_at_start": "at step 0",
            "train/loss_if_collapsed": "if all embeddings were one point",
            "validation/loss": "validation",
        },
    ),
    Panel(
        "Online probe",
        "Right answers on held-out images of the training store, while training went on.",
        {"probe/knn": "kNN", "probe/linear": "linear probe", "probe/validation": "validation accuracy"},
        percent=True,
    ),
    Panel(
        "Online rank",
        "Directions that the features use, without labels. Higher is better.",
        {"probe/rankme": "RankMe", "probe/lidar": "LiDAR"},
    ),
    Panel("Learning rate", "", {"train/learning_rate": "learning rate"}),
    Panel(
        "Separation of views",
        "0: two views of an image agree. 1: they differ as much as two images.",
        {"embedding/separation": "separation"},
    ),
    Panel(
        "Alignment of views",
        "Mean squared distance of an image's two views. 0: they agree. 2: they are unrelated.",
        {"embedding/alignment": "alignment"},
    ),
    Panel("Uniformity", "0: all images in one point. About -4: spread evenly.", {"embedding/uniformity": "uniformity"}),
    Panel(
        "Dimensions in use",
        "Effective rank of a batch's embeddings.",
        {"embedding/rank": "rank", "embedding/rank_limit": "largest possible"},
    ),
    Panel("Spread of the embedding", "0: all images in one point. 1: spread.", {"embedding/std": "spread"}),
    Panel("Gradient norm", "", {"train/gradient_norm": "gradient norm"}),
    Panel("Speed", "Images a second.", {"speed/images_per_s": "images/s"}),
    Panel(
        "Waiting for data",
        "Share of the time that training waited for images.",
        {"speed/data_wait_share": "waiting"},
        True,
    ),
)
_REFERENCES = ("train/loss_at_start", "train/loss_if_collapsed", "embedding/rank_limit")  # what a line is read beside
_NOT_DRAWN = ("step", "epoch", "plan/total_steps", "memory/peak_mb")


def charts_of(run: RunFiles) -> list[Chart]:
    """Draw all numbers of a run; those that no panel knows get a chart of their own."""
    known = {tag for panel in PANELS for tag in panel.lines}
    tags = dict.fromkeys(tag for line in run.lines for tag in line)
    others = [Panel(tag, "", {tag: tag}) for tag in tags if tag not in known and tag not in _NOT_DRAWN]
    drawn = (
        chart(
            panel.title,
            panel.note,
            [(name, number, run.values(tag)) for number, (tag, name) in enumerate(panel.lines.items())],
            panel.percent,
        )
        for panel in (*PANELS, *others)
    )
    return [one for one in drawn if one]


def charts_together(runs: Sequence[tuple[RunFiles, int]]) -> list[Chart]:
    """Draw the numbers of several runs, each in its style, over one another: a chart for each number."""
    found = []
    for panel in PANELS:
        compared = {tag: name for tag, name in panel.lines.items() if tag not in _REFERENCES}
        for tag, name in compared.items():
            title = panel.title if len(compared) == 1 else f"{panel.title}: {name}"
            curves = [(run.name, style, run.values(tag)) for run, style in runs]
            found += [one for one in [chart(title, panel.note, curves, panel.percent)] if one]
    return found
