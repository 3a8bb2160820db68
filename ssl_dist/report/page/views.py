"""A run's augmented views of some images of its store, as small pictures for a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ssl_dist.config import ResolvedConfig
from ssl_dist.errors import SslDistError
from ssl_dist.report.label_page import is_small, thumbnail
from ssl_dist.uris import is_remote

_IMAGES = 8


class Views(NamedTuple):
    """Images as they are stored, and one row for each view of them: base64 of JPEGs.

    Attributes:
        small: whether they are so small that they are shown enlarged, with hard edges.
    """

    small: bool
    rows: Sequence[tuple[str, Sequence[str]]]


def views_of(config: ResolvedConfig) -> Views | str:
    """Render the views that the first step made of some of its images.

    Returns:
        The views; or where the store or the labels are not at hand, a clause that says why there are none.
    """
    where = config.data.store
    if is_remote(where):
        return "the store is in a bucket, and a report fetches nothing"
    from ssl_dist.data import open_store
    from ssl_dist.data.images import store_digest
    from ssl_dist.data.sample_plan import SamplePlan

    try:
        store = open_store(config.data)
        if config.facts.store_digest not in (None, store_digest(store)):
            return f"{where} holds other images now than the run was trained on"
        micro_batches = range(min(config.batch.num_micro, -(-_IMAGES // config.batch.micro)))
        ids, epochs, _ = (part[:_IMAGES] for part in SamplePlan(config, store).select(0, micro_batches))
        images = store.gather(ids)
    except SslDistError as error:
        return str(error)
    import torch

    from ssl_dist import augment

    pixels, numbers, epoch = map(torch.from_numpy, (images, ids, epochs))
    crops = augment.crops(pixels, numbers, seed=config.seed, epoch=epoch, recipe=config.augment.views(done=0))
    rows = [("stored", [thumbnail(image) for image in images])]
    for part in crops:
        for view in part.mul(255).round().byte().permute(0, 1, 3, 4, 2).numpy():  # [N, S, S, 3]
            rows.append((f"view {len(rows)}", [thumbnail(image) for image in view]))
    return Views(is_small(store.image_shape), rows)
