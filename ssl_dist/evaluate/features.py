"""Features that an encoder computes of a store's images, with its weights frozen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ssl_dist import augment
from ssl_dist.backbones import Backbone
from ssl_dist.checkpoint import Checkpoint, locate
from ssl_dist.collectives import RowCounts, World
from ssl_dist.config import ResolvedConfig, RunConfig
from ssl_dist.errors import RunError
from ssl_dist.evaluate.levels import BACKBONE, HEADS, LAYER
from ssl_dist.methods import Method
from ssl_dist.settings import CheckpointChoice
from ssl_dist.store import ImageStore
from ssl_dist.store.decode import resize

_MOST_TOGETHER = 256  # images of a forward pass
_PIXELS_PX = 32  # largest side of raw pixels as features
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
    """Compute features of whole images, as ``store_features`` does, at the size of the run's largest view.

    Args:
        config: of the run whose backbone it is.
    """
    size_px = max(view.size_px or store.image_shape[0] for view in config.augment.views())
    return store_features(backbone, store, ids, device, size_px, forward_size(config), count)


def forward_size(config: RunConfig) -> int:
    """Return the images of a forward pass, for features of a run's backbone: a micro-batch, or 256 of a larger one."""
    return min(config.batch.micro, _MOST_TOGETHER)


def store_features(
    backbone: nn.Module,
    store: ImageStore,
    ids: np.ndarray,
    device: torch.device,
    size_px: int,
    together: int,
    count: ChunkCallback | None = None,
) -> Tensor:
    """Compute features of whole images, without augmentation, in evaluation mode.

    Images of another size than the backbone was trained for are resized, and their centre is cut out, as in the
    building of a store.

    Args:
        backbone: ``[N, 3, S, S]`` in [0, 1] -> ``[N, D]``; its training mode is restored afterwards.
        ids: int64 ``[n]``.
        size_px: S.
        together: images of a forward pass.
        count: called with the number of images after each pass.

    Returns:
        float32 ``[n, D]`` on ``device``.
    """

    features = pixel_features(backbone, ids, lambda ids: _resized(store.gather(ids), size_px), device, together, count)
    store.release()  # the next store may need the room in the cache
    return features


def pixel_features(
    backbone: nn.Module,
    ids: np.ndarray,
    pixels: Callable[[np.ndarray], np.ndarray],
    device: torch.device,
    together: int,
    count: ChunkCallback | None = None,
) -> Tensor:
    """Compute features of the pixels, uint8 ``[N, S, S, 3]``, that a function makes of ids, as ``store_features``."""

    def whole(ids: np.ndarray) -> Tensor:
        return torch.from_numpy(pixels(ids)).to(device).permute(0, 3, 1, 2).float() / 255

    return embed(backbone, ids, whole, together, count)


def raw_pixels(store: ImageStore, ids: np.ndarray, count: ChunkCallback | None = None) -> Tensor:
    """Return pixels in [0, 1] as features, float32 ``[n, 3 S S]``; images of more than 32 px are made that small."""
    size_px, parts = min(_PIXELS_PX, store.image_shape[0]), []
    for start in range(0, len(ids), _MOST_TOGETHER):
        pixels = _resized(store.gather(ids[start : start + _MOST_TOGETHER]), size_px)
        parts.append(torch.from_numpy(pixels).flatten(1).float() / 255)
        if count:
            count(len(pixels))
    store.release()
    return torch.cat(parts)


def _resized(pixels: np.ndarray, size_px: int) -> np.ndarray:
    """Return images ``[N, H, W, 3]`` at another size, their centre cut out, as in the building of a store."""
    if pixels.shape[1:3] == (size_px, size_px):
        return pixels
    return np.stack([resize(image, size_px) for image in pixels])


def extract_view(
    backbone: nn.Module,
    store: ImageStore,
    ids: np.ndarray,
    device: torch.device,
    config: RunConfig,
    count: ChunkCallback | None = None,
    *,
    seed: int,
    number: int,
) -> Tensor:
    """Compute features, as ``extract`` does, of a random view of each image, by the first view of the run's policy.

    Args:
        store: of images of the size that the run was trained on.
        seed, number: of the view; other numbers give other views.
    """
    policy = config.augment.views()[:1]

    def view(ids: np.ndarray) -> Tensor:
        pixels, numbers = torch.from_numpy(store.gather(ids)).to(device), torch.from_numpy(ids).to(device)
        return augment.views(pixels, numbers, seed=seed, epoch=number, recipe=policy)[0]

    return embed(backbone, ids, view, forward_size(config), count)


def embed(
    backbone: nn.Module,
    ids: np.ndarray,
    images: Callable[[np.ndarray], Tensor],
    together: int,
    count: ChunkCallback | None = None,
) -> Tensor:
    """Compute features of the pixels that ``images`` makes of sample ids, ``together`` at a time."""
    found = torch.empty(0)
    for start in range(0, len(ids), together):
        part = ids[start : start + together]
        rows = frozen_features(backbone, images(part))
        if not start:
            found = rows.new_empty((len(ids), *rows.shape[1:]))
        found[start : start + len(part)] = rows
        if count:
            count(len(part))
    return found


@torch.no_grad()
def frozen_features(backbone: nn.Module, images: Tensor) -> Tensor:
    """Compute float32 features of images in evaluation mode; the backbone's training mode is restored afterwards."""
    was_training = backbone.training
    backbone.eval()
    try:
        features: Tensor = backbone(images).float()
        return features
    finally:
        backbone.train(was_training)


class Levels(nn.Module):
    """Network that gives the features of several levels at once, one after another: images -> ``[N, sum of dims]``.

    A layer that gives a map ``[C, h, w]`` counts as its mean over the places, and one that gives tokens ``[T, D]``
    (a transformer's) as the mean of its patches' tokens.

    Attributes:
        levels: their names, see ``levels.levels_of``.
        dims: number of features of each level, known after the first images.
    """

    def __init__(self, method: Method, levels: Sequence[str]) -> None:
        super().__init__()
        self.backbone, self.levels, self.dims = method.backbone, list(levels), list[int]()
        self._heads = nn.ModuleDict({level: _head(method, HEADS[level]) for level in levels if level in HEADS})
        self._layers = {level: level.removeprefix(LAYER) for level in levels if level.startswith(LAYER)}
        body = self.backbone.body
        # torchvision's ViT has one token that is no patch's; timm's networks say how many they have
        self._other_tokens = getattr(body, "num_prefix_tokens", int(hasattr(body, "class_token")))
        layout = getattr(body, "output_fmt", "NHWC" if type(body).__name__ == "SwinTransformer" else "NCHW")
        self._channels_last = str(getattr(layout, "value", layout)) == "NHWC"

    def forward(self, images: Tensor) -> Tensor:
        seen = dict[str, Tensor]()

        def keep(level: str) -> Callable[[nn.Module, Any, Tensor], None]:
            return lambda module, inputs, output: seen.update({level: self._pooled(output)})

        body = self.backbone.body
        hooks = [body.get_submodule(name).register_forward_hook(keep(level)) for level, name in self._layers.items()]
        try:
            features = self.backbone(images)
        finally:
            for hook in hooks:
                hook.remove()
        seen |= {BACKBONE: features} | {level: head(features) for level, head in self._heads.items()}
        found = [seen[level] for level in self.levels]
        self.dims = [level.shape[1] for level in found]
        return torch.cat(found, dim=1)

    def _pooled(self, output: Tensor) -> Tensor:
        if output.dim() == 4:
            return output.mean((1, 2) if self._channels_last else (2, 3))
        if output.dim() == 3:
            return output[:, self._other_tokens :].mean(1)
        return output.flatten(1)


def _head(method: Method, left_out: int) -> nn.Sequential:
    """Return the projection head before the last ``left_out`` of its linear layers."""
    layers = list(cast(nn.Sequential, method.projection_head))
    linear = [number for number, layer in enumerate(layers) if isinstance(layer, nn.Linear)]
    return nn.Sequential(*layers[: linear[-left_out]])


def expect_finite(features: Tensor, checkpoint: Checkpoint) -> Tensor:
    """Return the features, of which each is a finite number.

    Raises:
        RunError: one is not, so that no figure of them means anything.
    """
    if not bool(features.sum(dtype=torch.float64).isfinite()):
        raise RunError(f"{checkpoint.path}: its features are not finite numbers: take an earlier checkpoint")
    return features


def over_workers(ids: np.ndarray, world: World, features_of: Callable[[np.ndarray], Tensor]) -> Tensor:
    """Return the features ``[n, D]`` of all ``ids`` on every rank, where each computes a part; every rank calls."""
    # Equal parts, padded with the first images: ZeRO-3 gathers weights in each forward pass, so ranks need as many.
    share = -(-len(ids) // world.size)
    padded = np.pad(ids, (0, share * world.size - len(ids)), mode="wrap")
    features = features_of(padded[world.rank * share : (world.rank + 1) * share])
    return RowCounts.of(features).gather(features)[: len(ids)]


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
