"""Random views of a batch: a pure function of (pixels, seed, epoch, sample id, view).

A line of a view is a weighted sum of a few lines of the image (crop, resize, flip, blur), its colours an affine map of
the image's (brightness, contrast, saturation, hue, grey). Values are clamped to [0, 1] once, at the end, where
torchvision clamps after every operation; there is no mean/std normalisation. Randomness is a 64-bit hash of (seed,
epoch, sample id, view, draw), so a view does not depend on its batch, its worker or on what was drawn before.

Shapes: N images, V views, H x W stored pixels, S output pixels a side.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from ssl_dist.augment.draws import draw
from ssl_dist.augment.operations import Maps, render
from ssl_dist.augment.recipes import OPERATIONS, RECIPES, Recipe, View, only
from ssl_dist.errors import ConfigError
from ssl_dist.order import fold

__all__ = ["OPERATIONS", "RECIPES", "Recipe", "View", "crops", "only", "views"]

_CACHED_BYTES = 3 << 18  # of pixels that a core works on at a time


def views(
    images: Tensor,
    ids: Tensor,
    *,
    seed: int,
    epoch: int | Tensor,
    recipe: str | Recipe,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Random views of every image, computed on the device that holds the images.

    Args:
        images: uint8 ``[N, H, W, 3]``.
        ids: int64 ``[N]``, the images' sample ids.
        seed: of the run.
        epoch: of all images, or int64 ``[N]`` of each.
        recipe: a name of RECIPES, or one View for each view; all of one output size.
        dtype: of the result, float32 or bfloat16: all is computed in float32 and rounded once.

    Returns:
        ``[V, N, 3, S, S]`` in [0, 1].

    Raises:
        ConfigError: unknown recipe, or views of different sizes.
    """
    made = crops(images, ids, seed=seed, epoch=epoch, recipe=recipe, dtype=dtype)
    if len(made) != 1:
        raise ConfigError(f"views of different sizes {sorted({part.shape[-1] for part in made})} in one recipe")
    return made[0]


def crops(
    images: Tensor,
    ids: Tensor,
    *,
    seed: int,
    epoch: int | Tensor,
    recipe: str | Recipe,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, ...]:
    """``views`` of a recipe whose sizes differ: ``[V_i, N, 3, S_i, S_i]`` for each run of views of one size."""
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise ConfigError(f"augment recipe {recipe!r}: it is one of {', '.join(RECIPES)}")
        recipe = RECIPES[recipe]
    images, ids = torch.as_tensor(images), torch.as_tensor(ids)
    height = images.shape[1]
    epochs = torch.as_tensor(epoch, device=images.device).expand(len(images))
    state = fold(fold(fold(torch.zeros_like(ids), seed), epochs), ids)
    made = [
        images.new_empty((len(list(alike)), len(images), 3, size, size), dtype=dtype)
        for size, alike in itertools.groupby(view.size_px or height for view in recipe)
    ]
    outs = [out for part in made for out in part]
    # many small operations, each quicker by what autograd would look after; autocast would round pixels to bfloat16
    with torch.inference_mode(), torch.autocast(images.device.type, enabled=False):
        maps = _maps(recipe, state, images)
        for some in _parts(images):
            columns = images[some].permute(0, 2, 3, 1)  # [N, W, 3, H]
            columns = columns.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
            for one, out in zip(maps, outs, strict=True):
                out[some] = render(columns, one.part(some), out.shape[-1])
    return tuple(made)


def _maps(recipe: Recipe, state: Tensor, images: Tensor) -> list[Maps]:
    """Of each view; equal views in a row are drawn together."""
    num_images, height, width, _ = images.shape
    numbers = torch.arange(len(recipe), device=state.device)
    states = fold(state, numbers[:, None])  # [V, N]
    maps, first = [], 0
    for view, alike in itertools.groupby(recipe):
        after = first + len(list(alike))
        drawn = draw(states[first:after].flatten(), view, height, width)
        together = Maps.of(drawn, height, width, view.size_px or height)
        maps += [together.part(slice(k * num_images, (k + 1) * num_images)) for k in range(after - first)]
        first = after
    return maps


def _parts(images: Tensor) -> Iterator[slice]:
    """Runs of images of which a processor's cores each have a cacheful; on other devices, all."""
    at_once = max(1, len(images))
    if images.device.type == "cpu" and len(images):
        at_once = max(1, _CACHED_BYTES // (images[0].numel() * 4)) * torch.get_num_threads()
    return (slice(start, start + at_once) for start in range(0, len(images), at_once))
