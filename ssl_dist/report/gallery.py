"""Images of an evaluation, for pages: confident mistakes, test images with their nearest training images, and a map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ssl_dist.evaluate.compare import Comparison
from ssl_dist.evaluate.labelled import Labelled
from ssl_dist.evaluate.over_training import drawn
from ssl_dist.report.label_page import is_small, thumbnail
from ssl_dist.report.map_page import SIDE, places

if TYPE_CHECKING:
    from ssl_dist.evaluate.maps import Groups, Panel

_MISTAKES, _QUERIES, _NEIGHBOURS = 24, 8, 6  # images


def gallery(
    result: Comparison, mistakes: Sequence[dict[str, Any]], names: Sequence[str], mapped: tuple[Panel, Groups] | None
) -> dict[str, Any]:
    """Return what a page shows of an evaluation, for JSON, with small JPEGs as base64.

    The nearest training images are those of the features by which the run's first row answered, by cosine similarity;
    the test images that look for them are drawn, each class its share.

    Args:
        mistakes: the most confident ones, as ``classification.write`` returns them.
        names: of the classes.
        mapped: the map of the last checkpoint, and the groups that give it its colours.
    """
    import torch

    from ssl_dist.evaluate.knn import nearest

    known, asked = result.train, result.test
    rows = drawn(_QUERIES, len(asked.ids), 0, asked.labels)
    train, test = result.answered
    similarity, near = nearest(train, test[torch.from_numpy(rows)], min(_NEIGHBOURS, len(train)))
    queries = [
        {**image, "nearest": [{**one, "similarity": round(s, 4)} for one, s in zip(found, row, strict=True)]}
        for image, found, row in zip(
            _images(asked, rows, names),
            (_images(known, some, names) for some in near.cpu().numpy()),
            similarity.tolist(),
            strict=True,
        )
    ]
    shown = mistakes[:_MISTAKES]
    pixels = asked.store.gather(np.array([one["id"] for one in shown], dtype=np.int64))
    return {
        "small": is_small(asked.store.image_shape),
        "mistakes": [{**one, "thumbnail": thumbnail(image)} for one, image in zip(shown, pixels, strict=True)],
        "neighbours": queries,
        "map": mapped and _map(*mapped),
    }


def _images(images: Labelled, rows: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    ids = images.ids[rows]
    parts = zip(images.store.gather(ids), images.store.keys_at(ids), images.labels[rows], strict=True)
    return [{"key": key, "label": names[label], "thumbnail": thumbnail(pixels)} for pixels, key, label in parts]


def _map(panel: Panel, groups: Groups) -> dict[str, Any]:
    return {
        "title": groups.title,
        "groups": list(groups.names),
        "group": groups.numbers.tolist(),
        "side": SIDE,
        **places(panel.points),
    }
