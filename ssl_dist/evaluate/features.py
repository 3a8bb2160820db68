"""Features that an encoder computes of a store's images, with its weights frozen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ssl_dist.backbones import Backbone
from ssl_dist.checkpoint import Checkpoint, locate
from ssl_dist.config import ResolvedConfig, RunConfig
from ssl_dist.methods import Method
from ssl_dist.settings import CheckpointChoice
from ssl_dist.store import ImageStore
from ssl_dist.store.decode import resize

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
    return load_method(found), found.config, found.step


def load_method(checkpoint: Checkpoint) -> Method:
    """Load the method with a checkpoint's weights, on the CPU."""
    method = checkpoint.config.initial_method()
    method.load_state_dict(checkpoint.load().model)
    return method
