"""Maps of features as one page that needs nothing else: pointing at an image shows it, its key and its group."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ssl_dist.errors import RunError
from ssl_dist.evaluate.maps import Groups, Panel
from ssl_dist.files import write_text
from ssl_dist.report.maps import palette
from ssl_dist.store import ImageStore

_TEMPLATE = Path(__file__).with_name("map.html")
SIDE = 9999  # places are whole numbers up to this one
_LARGEST_THUMBNAIL_PX, _LARGEST_SHEET_PX = 96, 4096  # phones show no larger pictures
_BLOCK_PX = 8  # of a JPEG: thumbnails of whole blocks do not run into each other
_QUALITY = 88
_CHUNK = 512  # images read at once


def write_page(
    panels: Sequence[Panel], groups: Groups, title: str, store: ImageStore, ids: np.ndarray, page: Path
) -> None:
    """Write a page of maps of a store's images, whole or not at all.

    Raises:
        RunError: it cannot be written.
        StoreDamaged: an image's record batch differs from its checksum.
    """
    sheet, thumbnails = _sheet(store, ids)
    counts = np.bincount(groups.numbers, minlength=len(groups.names)).tolist()
    named = zip(groups.names, palette(groups.names), counts, strict=True)
    data = {
        "title": title,
        "groupTitle": groups.title,
        "groups": [{"name": name, "colour": colour, "count": count} for name, colour, count in named],
        "group": groups.numbers.tolist(),
        "keys": store.keys_at(ids),
        "side": SIDE,
        "panels": [{"title": panel.title, **places(panel.points)} for panel in panels],
        "thumbnails": thumbnails,
    }
    # No "<" stays in the data, so nothing in it can end its element. ASCII alone: the page is read in any encoding.
    parts = {"TITLE": html.escape(title), "SHEET": sheet, "DATA": json.dumps(data).replace("<", "\\u003c")}
    template = _TEMPLATE.read_text(encoding="utf-8")
    try:
        write_text(page, re.sub("__(TITLE|SHEET|DATA)__", lambda found: parts[found[1]], template))
    except OSError as error:
        raise RunError(f"page {page} cannot be written ({error})") from None


def places(points: np.ndarray) -> dict[str, list[int]]:
    """Scale a map, float ``[n, 2]``, to whole numbers in [0, SIDE], the same in both directions, y downward."""
    low, high = points.min(0), points.max(0)
    extent = max(float((high - low).max()), float(np.finfo(np.float32).tiny))
    places = np.rint(((points - (low + high) / 2) / extent * (1, -1) + 0.5) * SIDE).astype(int)
    return {"x": places[:, 0].tolist(), "y": places[:, 1].tolist()}


def _sheet(store: ImageStore, ids: np.ndarray) -> tuple[str, dict[str, Any]]:
    """Return all images as small ones on one JPEG, row by row: its data URI, and their side and number in a row."""
    columns = math.ceil(math.sqrt(len(ids)))
    most = max(_BLOCK_PX, min(_LARGEST_THUMBNAIL_PX, _LARGEST_SHEET_PX // columns) // _BLOCK_PX * _BLOCK_PX)
    px = min(most, -(-max(store.image_shape[:2]) // _BLOCK_PX) * _BLOCK_PX)
    sheet = Image.new("RGB", (columns * px, math.ceil(len(ids) / columns) * px))
    for start in range(0, len(ids), _CHUNK):
        for number, pixels in enumerate(store.gather(ids[start : start + _CHUNK]), start):
            small = Image.fromarray(pixels).resize((px, px), Image.Resampling.LANCZOS)
            sheet.paste(small, (number % columns * px, number // columns * px))
    content = io.BytesIO()
    sheet.save(content, "JPEG", quality=_QUALITY, subsampling=0)
    uri = f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
    return uri, {"px": px, "columns": columns}
