"""Maps of features as pictures: a panel for each encoder, a colour for each group of images."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ssl_dist.evaluate.maps import Groups, Panel
from ssl_dist.report.pictures import literal, save, shortened

PANEL_IN = 4.0  # inches, at 110 dots each
_LEGEND_ROW_IN, _CHARACTER_IN, _TITLE_IN = 0.22, 0.075, 0.5
_LARGEST_LEGEND = 30  # groups; the others have colours alone
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
    names = [_short(name) for name in groups.names[:_LARGEST_LEGEND]]
    in_a_row = max(1, min(len(names), int(width / (0.5 + _CHARACTER_IN * max(map(len, names))))))
    legend_in = 0.4 + _LEGEND_ROW_IN * math.ceil(len(names) / in_a_row)
    figure = Figure(figsize=(width, PANEL_IN * rows + legend_in + _TITLE_IN), layout="constrained")
    figure.suptitle(literal(title), fontsize=9)
    colours = np.array(palette(groups.names))
    order = np.random.default_rng(0).permutation(len(groups.numbers))  # else the last group would hide the others
    size = float(np.clip(12_000 / len(order), 1, 20))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis, panel in zip(axes, panels, strict=False):
        axis.scatter(*panel.points[order].T, s=size, c=colours[groups.numbers[order]], linewidths=0, alpha=0.75)
        axis.set(xticks=[], yticks=[])
        axis.set_title(panel.title, fontsize=9)
        axis.set_aspect("equal", adjustable="datalim")
        axis.spines[:].set_color("#cccccc")
    handles = [Line2D([], [], marker="o", ls="", ms=5, color=colour) for colour in colours[: len(names)]]
    only = f", the first {len(names)} of {len(groups.names)}" if len(names) < len(groups.names) else ""
    legend = figure.legend(handles, names, loc="outside lower center", ncols=in_a_row, fontsize=8, handletextpad=0)
    legend.set_title(groups.title + only)
    legend.get_title().set_fontsize(8)
    legend.set_frame_on(False)
    save(figure, picture)


def _short(name: str) -> str:
    """Return a group's name for a legend; without the space, a legend leaves out a name that begins with "_"."""
    return " " + literal(shortened(name))
