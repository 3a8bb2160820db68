"""Features that an encoder computes of a store's images, with its weights frozen."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ssl_dist.backbones import Backbone
from ssl_dist.checkpoint import locate
from ssl_dist.config import ResolvedConfig, RunConfig
from ssl_dist.data import open_store
from ssl_dist.errors import StoreError
from ssl_dist.methods import Method
from ssl_dist.settings import CheckpointChoice, DataConfig
from ssl_dist.store import ImageStore
from ssl_dist.store.decode import resize

log = logging.getLogger(__name__)

_MOST_TOGETHER = 256  # images of a forward pass
ChunkCallback = Callable[[int], None]
"""(images of a chunk that is done) -> None."""


def fastest_device() -> torch.device:
    """Return the device for features outside a training run: the GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def extract(
    backbone: nn.Module,
    store: ImageStore,
    ids: np.ndarray,
    device: torch.device,
    config: RunConfig,
    count: ChunkCallback | None = None,
) -> Tensor:
    """Compute features of whole images, without augmentation, in evaluation mode.

    Images have the size of the run's largest view, for which the backbone was trained. Those of another size are
    resized, and their centre is cut out, as in the building of a store. They are embedded in micro-batches.

    Args:
        backbone: ``[N, 3, S, S]`` in [0, 1] -> ``[N, D]``; its training mode is restored afterwards.
        ids: int64 ``[n]``.
        config: of the run whose backbone it is.
        count: called after each chunk.

    Returns:
        float32 ``[n, D]`` on ``device``.
    """
    size_px = max(view.size_px or store.image_shape[0] for view in config.augment.views())

    def whole(ids: np.ndarray) -> Tensor:
        pixels = store.gather(ids)
        if pixels.shape[1:3] != (size_px, size_px):
            pixels = np.stack([resize(image, size_px) for image in pixels])
        return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 255

    features = embed(backbone, ids, whole, config, count)
    store.release()  # the next store may need the room in the cache
    return features


@torch.no_grad()
def embed(
    backbone: nn.Module,
    ids: np.ndarray,
    images: Callable[[np.ndarray], Tensor],
    config: RunConfig,
    count: ChunkCallback | None = None,
) -> Tensor:
    """Compute features, as ``extract`` does, of the pixels that ``images`` makes of sample ids, a chunk at a time."""
    chunk = min(config.batch.micro, _MOST_TOGETHER)
    was_training = backbone.training
    backbone.eval()
    found = torch.empty(0)
    for start in range(0, len(ids), chunk):
        part = ids[start : start + chunk]
        rows = backbone(images(part)).float()
        if not start:
            found = rows.new_empty((len(ids), *rows.shape[1:]))
        found[start : start + len(part)] = rows
        if count:
            count(len(part))
    backbone.train(was_training)
    return found


def encoder_of(run: Path, checkpoint: CheckpointChoice = "newest") -> tuple[Backbone, ResolvedConfig, int]:
    """Load the trained backbone of a run, as ``trained_method`` loads its method."""
    method, config, step = trained_method(run, checkpoint)
    return method.backbone, config, step


def trained_method(run: Path, checkpoint: CheckpointChoice = "newest") -> tuple[Method, ResolvedConfig, int]:
    """Load the method with the weights of one of a run's checkpoints that verifies.

    Args:
        run: the run's directory, its folder of checkpoints, or one checkpoint.
        checkpoint: which one, where ``run`` has several.

    Returns:
        (method on the CPU, the run's config, steps it was trained for).

    Raises:
        RunError: no such run or checkpoint.
        CheckpointError: it is damaged.
    """
    found = locate(run, checkpoint)
    method = found.config.initial_method()
    method.load_state_dict(found.load().model)
    return method, found.config, found.step


def open_labelled(path: str | Path, data: DataConfig, image_shape: tuple[int, int, int] | None = None) -> ImageStore:
    """Open a labelled store to evaluate a run on; ``data`` is the run's section and names the cache.

    Raises:
        StoreError: the store has no labels, or images of another size than ``image_shape``.
    """
    store = open_store(data, str(path))
    if not store.class_names or not (store.labels >= 0).any():
        raise StoreError(f"{store.name} has no labels: an evaluation needs a store built from class folders")
    if image_shape is not None and store.image_shape != image_shape:
        raise StoreError(
            f"{store.name} holds {store.image_shape} images where {image_shape} is needed: build it"
            f" with --size-px {image_shape[0]}"
        )
    return store


def labels_by_name(train: ImageStore, test: ImageStore) -> np.ndarray:
    """Return the test store's labels as numbers of the training store's classes, which are matched by name.

    A class that the training store lacks gets a number that it has for no class. So its images count, and no classifier
    is right about them: an accuracy is of the whole test store. A warning says how many they are.

    Returns:
        int32 ``[n]``, -1 for an image without a label.

    Raises:
        StoreError: each of the stores has classes that the other lacks.
    """
    missing = [name for name in test.class_names if name not in train.class_names]
    unused = [name for name in train.class_names if name not in test.class_names]
    if missing and unused:
        raise StoreError(
            f"{train.name} and {test.name} have different classes: only the first has {_some(unused)}, only the second"
            f" has {_some(missing)}: name the class folders of both alike, or leave out the classes that one lacks"
        )
    numbers = {name: number for number, name in enumerate([*train.class_names, *missing])}
    table = np.array([*(numbers[name] for name in test.class_names), -1], dtype=np.int32)
    labels: np.ndarray = table[test.labels]  # -1 takes the last entry
    if count := int((labels >= len(train.class_names)).sum()):
        log.warning(
            "%s has no class %s, so %d images of %s count as wrong", train.name, _some(missing), count, test.name
        )
    return labels


def _some(names: Sequence[str]) -> str:
    """Quote at most three names, and say how many others there are."""
    shown = ", ".join(map(repr, names[:3]))
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
