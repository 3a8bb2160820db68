"""The encoders of a run over its training: the random weights that it started from, and those of its checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from ssl_dist.checkpoint import Checkpoint, locate, locate_all
from ssl_dist.data import sample_ids
from ssl_dist.evaluate.protocols import ProgressCallback
from ssl_dist.progress import Tally
from ssl_dist.settings import CheckpointChoice
from ssl_dist.store import ImageStore

if TYPE_CHECKING:
    from torch import Tensor

    from ssl_dist.evaluate.rank import Ranks
    from ssl_dist.methods import Method

log = logging.getLogger(__name__)

_STREAM = -2  # the "epoch" whose permutation chooses images; training uses epochs from 0, the online probe -1


class RankRow(NamedTuple):
    """The measures of the weights after ``step`` steps; None: of the random weights that training started from."""

    step: int | None
    ranks: Ranks


def checkpoints_of(run: Path, choice: CheckpointChoice | Literal["all"]) -> Sequence[Checkpoint]:
    """Return the chosen checkpoints of a run, at least one, oldest first; errors are those of ``locate_all``."""
    return locate_all(run) if choice == "all" else [locate(run, choice)]


def weights_over_training(checkpoints: Sequence[Checkpoint]) -> Iterator[tuple[int | None, Method]]:
    """Yield the method with the random weights of the run's seed (step None), then with those of each checkpoint."""
    from ssl_dist.evaluate.features import load_method

    yield None, checkpoints[-1].config.initial_method()
    for checkpoint in checkpoints:
        yield checkpoint.step, load_method(checkpoint)


def drawn(count: int, num_images: int, seed: int, labels: np.ndarray | None = None) -> np.ndarray:
    """Draw the numbers of ``count`` of a store's images, or of all where it has fewer: int64, ascending.

    Args:
        labels: int32 ``[num_images]``; each label then has its share of the images, rounded down or up.
    """
    count = min(count, num_images)
    if labels is None:
        return np.sort(sample_ids(seed, _STREAM, 0, count, num_images))
    order = sample_ids(seed, _STREAM, 0, num_images, num_images)
    order = order[np.argsort(labels[order], kind="stable")]  # label by label, and in random order within each
    return np.sort(order[(np.arange(count) * num_images + num_images // 2) // max(count, 1)])


def rank_curve(
    checkpoints: Sequence[Checkpoint],
    store: ImageStore,
    ids: np.ndarray,
    *,
    views: int,
    seed: int,
    progress: ProgressCallback | None = None,
) -> list[RankRow]:
    """Measure a run's random weights and its checkpoints without labels.

    Args:
        store: of images of the size that the run was trained on; ``ids`` are those that are embedded.
        views: random views of each image, 2 or more, by the first view of the run's policy.
        seed: of the views.
        progress: called with (images embedded, images in all), where each view of an image counts.

    Returns:
        the rows of the random weights and of each checkpoint, in this order.
    """
    import torch  # here: a mistake is told before

    from ssl_dist.evaluate.features import extract, extract_view, fastest_device
    from ssl_dist.evaluate.rank import Ranks

    config, device, rows = checkpoints[-1].config, fastest_device(), []
    count = Tally(progress, (len(checkpoints) + 1) * (views + 1) * len(ids))

    def view(backbone: torch.nn.Module, number: int) -> Tensor:
        return extract_view(backbone, store, ids, device, config, count, seed=seed, number=number)

    for step, method in weights_over_training(checkpoints):
        backbone = method.backbone.to(device)
        whole = extract(backbone, store, ids, device, config, count)  # [n, D]
        seen = torch.stack([view(backbone, number) for number in range(views)], dim=1)  # [n, q, D]
        if step is None and len(ids) <= whole.shape[1]:
            log.warning("%d images of %d features: ranks are those of the images: take more", *whole.shape)
        if step is None and seen[:, 0].equal(seen[:, 1]):
            log.warning("views by policy %s are not random: align and LiDAR say nothing", config.augment.recipe)
        rows.append(RankRow(step, Ranks.of(whole, seen)))
    return rows
