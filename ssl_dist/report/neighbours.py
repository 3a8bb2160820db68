"""A picture of an image and its nearest images, in a row, with what is known of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ssl_dist.report.pictures import literal, save, shortened

_IMAGE_IN, _TEXT_IN = 1.15, 0.5  # inches
_IN_A_ROW = 11


def draw_neighbours(images: Sequence[np.ndarray], texts: Sequence[str], picture: Path) -> None:
    """Write a picture of images, uint8 ``[H, W, 3]`` each, with a text of up to two lines below each.

    The first image is the one whose neighbours the others are: it has a frame.

    Raises:
        RunError: the picture cannot be written.
    """
    from matplotlib.figure import Figure

    columns = min(len(images), _IN_A_ROW)
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(_IMAGE_IN * columns, (_IMAGE_IN + _TEXT_IN) * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for number, axis in enumerate(axes):
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(number == 0)
        axis.spines[:].set_linewidth(3)
        if number < len(images):
            axis.imshow(images[number], interpolation="nearest")
            lines = [shortened(line) for line in texts[number].splitlines()]
            axis.set_xlabel(literal("\n".join(lines)), fontsize=7)
    save(figure, picture)
