"""The evaluation of a run as files beside it: evaluation.json with all figures, and a folder of pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_dist.files import to_json, write_text

if TYPE_CHECKING:
    from ssl_dist.evaluate.everything import Everything

FILE, FOLDER, MAP = "evaluation.json", "evaluation", "map.png"


def write(run: Path, found: Everything) -> dict[str, Any]:
    """Write RUN/evaluation.json, and into RUN/evaluation the classification report and the map.

    Returns:
        What the JSON file holds.

    Raises:
        RunError: a picture cannot be written.
    """
    from ssl_dist.report import classification
    from ssl_dist.report.maps import draw_maps

    folder = run / FOLDER
    last = found.accuracies[-1]
    content = {
        "step": last.step,
        "seconds": round(found.seconds, 1),
        "accuracies": [one.plain() for one in found.accuracies],
        "ranks": [{"step": row.step, **row.ranks._asdict()} for row in found.ranks or ()],
        "classification": str(folder),
        "map": str(folder / MAP) if found.map else None,
        "left_out": found.left_out,
    }
    write_text(run / FILE, to_json(content))  # first: if a picture cannot be made, the figures stay
    classification.write(last, folder)
    (folder / MAP).unlink(missing_ok=True)  # of an earlier evaluation
    if found.map:
        draw_maps(*found.map, f"t-SNE of test images, step {last.step:,}", folder / MAP)
    return content


def rows(run: Path) -> Sequence[tuple[str, str]]:
    """Return the accuracies in RUN/evaluation.json for a table; none where the run was not evaluated."""
    try:
        content = json.loads((run / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    found = []
    for one in content["accuracies"]:
        first = one["rows"][0]
        low, high = first["top1_interval"]
        beside = "" if one["random"] is None else f", random weights {one['random']:.1%}"
        found.append((one["evaluation"], f"{first['top1']:.1%} ({100 * low:.1f} .. {100 * high:.1f}{beside})"))
    return found
