"""The evaluation of a run as files beside it: evaluation.json with all figures, and a folder of pictures."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_dist.errors import RunError
from ssl_dist.files import to_json, write_text

if TYPE_CHECKING:
    from ssl_dist.evaluate.everything import Everything

log = logging.getLogger(__name__)

FILE, FOLDER, MAP, GALLERY = "evaluation.json", "evaluation", "map.png", "gallery.json"


def expect_writable(run: Path) -> None:
    """Refuse a run directory in which the files cannot be written, before anything is computed.

    Raises:
        RunError: one of them cannot.
    """
    from ssl_dist.report import classification

    classification.expect_writable(run / FOLDER)
    for path in (run / FILE, run / FOLDER / MAP, run / FOLDER / GALLERY):
        if path.is_dir():
            raise RunError(f"{path} is a folder, where a file is to be written: rename it")


def write(run: Path, found: Everything) -> dict[str, Any]:
    """Write RUN/evaluation.json, and into RUN/evaluation the classification report, the map and a page's images.

    Returns:
        What the JSON file holds.

    Raises:
        RunError: one of the files cannot be written.
    """
    from ssl_dist.evaluate.mistakes import Mistakes
    from ssl_dist.report import classification
    from ssl_dist.report.gallery import gallery
    from ssl_dist.report.maps import draw_maps

    folder = run / FOLDER
    last = found.accuracies[-1]
    content = {
        "step": last.step,
        "train": last.train.store.name,
        "test": last.test.store.name,
        "seconds": round(found.seconds, 1),
        "accuracies": [one.plain() for one in found.accuracies],
        "ranks": [{"step": row.step, **row.ranks._asdict()} for row in found.ranks or ()],
        "ranked_images": found.num_ranked,
        "classification": str(folder),
        "mistakes": Mistakes.of(last).summary,
        "map": str(folder / MAP) if found.map else None,
        "left_out": found.left_out,
    }
    try:
        write_text(run / FILE, to_json(content))  # first: if a picture cannot be made, the figures stay
    except OSError as error:
        raise RunError(f"{run / FILE} cannot be written ({error.strerror})") from None
    answers = classification.write(last, folder)
    images = gallery(last, answers["mistakes"], answers["class_names"], found.map and (found.map[0][-1], found.map[1]))
    try:
        write_text(folder / GALLERY, to_json(images))
    except OSError as error:
        raise RunError(f"{folder / GALLERY} cannot be written ({error.strerror})") from None
    (folder / MAP).unlink(missing_ok=True)  # of an earlier evaluation
    if found.map:
        draw_maps(*found.map, f"t-SNE of test images, step {last.step:,}", folder / MAP)
    return content


def rows(run: Path) -> Sequence[tuple[str, str]]:
    """Return the accuracies in RUN/evaluation.json for a table; none where the run was not evaluated.

    A file that is not as ``write`` makes it is named in the log.
    """
    file = run / FILE
    if not file.exists():
        return []
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return [_row(one, content["step"]) for one in content["accuracies"]]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        log.warning("%s: passed over, because it is not as `evaluate all` writes it (%r)", file, error)
        return []


def _row(one: dict[str, Any], step: int) -> tuple[str, str]:
    first = one["rows"][0]
    low, high = first["top1_interval"]
    beside = "" if one["random"] is None else f", random weights {one['random']:.1%}"
    return (
        f"{one['evaluation']}, {one['num_train']:,} labels",
        f"{first['top1']:.1%} ({100 * low:.1f} .. {100 * high:.1f}{beside}; of step {step:,})",
    )
