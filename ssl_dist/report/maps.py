"""Maps of features as pictures: a panel for each encoder, a colour for each group of images."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ssl_dist.evaluate.maps import Groups, Panel
from ssl_dist.report.pictures import save

PANEL_IN = 4.0  # inches, at 110 dots each
_LEGEND_ROW_IN, _LEGEND_COLUMN_IN, _TITLE_IN = 0.22, 1.3, 0.5
_LARGEST_LEGEND = 40  # groups; the others have colours alone
_TEN = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f9f1f", "#17becf", "#d4b000")
_NO_LABEL = "#999999"


def palette(names: Sequence[str]) -> list[str]:
    """Return a colour for each group, as #rrggbb: ten that differ most, or as many hues as there are groups."""
    if len(names) <= len(_TEN) + ("no label" in names):
        colours = list(_TEN[: len(names)])
    else:
        hues = (number * (math.sqrt(5) - 1) / 2 % 1 for number in range(len(names)))  # neighbours are far apart
        tones = ((0.45, 0.75), (0.6, 0.55), (0.35, 0.6))
        rgb = (colorsys.hls_to_rgb(hue, *tones[number % 3]) for number, hue in enumerate(hues))
        colours = ["#" + "".join(f"{round(255 * channel):02x}" for channel in one) for one in rgb]
    colours += [_NO_LABEL] * (len(names) - len(colours))
    return [_NO_LABEL if name == "no label" else colour for name, colour in zip(names, colours, strict=True)]


def grid(num_panels: int) -> tuple[int, int]:
    """Return rows and columns for panels: up to three in a row, then about as many rows as columns."""
    columns = num_panels if num_panels <= 3 else math.ceil(math.sqrt(num_panels))
    return math.ceil(num_panels / columns), columns


def draw_maps(panels: Sequence[Panel], groups: Groups, title: str, picture: Path) -> None:
    """Write a picture of maps side by side, with a legend of the groups below.

    Raises:
        RunError: the picture cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    rows, columns = grid(len(panels))
    width = max(PANEL_IN * columns, PANEL_IN * 1.5)
    in_legend = groups.names[:_LARGEST_LEGEND]
    longest = max(map(len, in_legend))
    legend_columns = max(1, min(len(in_legend), int(width / max(_LEGEND_COLUMN_IN, 0.4 + 0.08 * min(longest, 40)))))
    legend_in = 0.4 + _LEGEND_ROW_IN * math.ceil(len(in_legend) / legend_columns)
    figure = Figure(figsize=(width, PANEL_IN * rows + legend_in + _TITLE_IN), layout="constrained")
    figure.suptitle(title, fontsize=9)
    colours = np.array(palette(groups.names))
    order = np.random.default_rng(0).permutation(len(groups.numbers))  # else the last group would hide the others
    size = float(np.clip(12_000 / len(order), 1, 20))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set(xticks=[], yticks=[])
        axis.set_visible(False)
    for axis, panel in zip(axes, panels, strict=False):
        axis.set_visible(True)
        axis.scatter(*panel.points[order].T, s=size, c=colours[groups.numbers[order]], linewidths=0, alpha=0.75)
        axis.set_title(panel.title, fontsize=9)
        axis.set_aspect("equal", adjustable="datalim")
        axis.spines[:].set_color("#cccccc")
    handles = [
        Line2D([], [], marker="o", ls="", ms=5, color=colour, label=name if len(name) <= 40 else f"{name[:39]}…")
        for name, colour in zip(in_legend, colours, strict=False)
    ]
    more = len(groups.names) - len(in_legend)
    legend_title = groups.title + (f", and {more} more" if more else "")
    figure.legend(
        handles=handles, loc="outside lower center", ncols=legend_columns, fontsize=8, title=legend_title,
        title_fontsize=8, frameon=False, handletextpad=0.1,
    )  # fmt: skip
    save(figure, picture)
