"""Random views of a batch: a pure function of (pixels, seed, epoch, sample id, view).

A line of a view is a weighted sum of a few lines of the image (crop, resize, flip, blur), its colours an affine map of
the image's (brightness, contrast, saturation, hue, grey). Values are clamped to [0, 1] once, at the end, where
torchvision clamps after every operation; there is no mean/std normalisation. Randomness is a 64-bit hash of (seed,
epoch, sample id, view, draw), so a view does not depend on its batch, its worker or on what was drawn before.

Shapes: N images, V views, H x W stored pixels, S output pixels a side.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor

from ssl_dist.augment.draws import draw
from ssl_dist.augment.operations import Maps, maps_of, render
from ssl_dist.augment.recipes import OPERATIONS, RECIPES, Recipe, View, only
from ssl_dist.errors import ConfigError
from ssl_dist.hashing import fold

__all__ = ["OPERATIONS", "RECIPES", "Recipe", "View", "crops", "only", "views"]

_CACHED_BYTES = 3 << 18  # of pixels that a core works on at a time
_HELD_BYTES = 1 << 28  # of pixels that another device works on at a time
_DRAWN = 32  # lots of images rendered together that are drawn together
_LARGE_BYTES = 4 << 20  # from which on NumPy asks for large pages


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
        _empty((len(list(alike)), len(images), 3, size, size), dtype, images.device)
        for size, alike in itertools.groupby(view.size_px or height for view in recipe)
    ]
    outs = [out for part in made for out in part]
    # many small operations, each quicker by what autograd would look after; autocast would round pixels to bfloat16
    with torch.inference_mode(), torch.autocast(images.device.type, enabled=False):
        at_once = _at_once(images)
        for first in range(0, len(images), _DRAWN * at_once):
            some = slice(first, first + _DRAWN * at_once)
            _render(images[some], state[some], recipe, at_once, [out[some] for out in outs])
    return tuple(made)


def _render(images: Tensor, state: Tensor, recipe: Recipe, at_once: int, outs: list[Tensor]) -> None:
    """All views of some images, into ``outs``."""
    parts = images.split(at_once)
    maps = _maps(recipe, state, images.shape[1:3], [len(part) for part in parts])
    for place, part in enumerate(parts):
        across = part.permute(0, 2, 3, 1)  # [N, W, 3, H]
        columns = torch.empty(across.shape, dtype=torch.float32, device=images.device).copy_(across).div_(255)
        for one, out in zip(maps, outs, strict=True):
            render(columns, one[place], out[place * at_once :][: len(part)])


def _maps(recipe: Recipe, state: Tensor, shape: torch.Size, together: list[int]) -> list[list[Maps]]:
    """Of each view and each part of the images; equal views in a row are drawn together."""
    (height, width), maps = shape, list[list[Maps]]()
    numbers = torch.arange(len(recipe), device=state.device)
    states = fold(state, numbers[:, None])  # [V, N]
    for view, alike in itertools.groupby(recipe):
        count = len(list(alike))
        drawn = draw(states[len(maps) : len(maps) + count].flatten(), view, height, width)
        made = iter(maps_of(drawn, height, width, view.size_px or height, together * count))
        maps += [list(itertools.islice(made, len(together))) for _ in range(count)]
    return maps


def _at_once(images: Tensor) -> int:
    """How many images are rendered together: on a CPU a cacheful for each core."""
    of_one = max(1, images[:1].numel() * 4)
    if images.device.type != "cpu":
        return max(1, _HELD_BYTES // of_one)
    return max(1, _CACHED_BYTES // of_one) * torch.get_num_threads()


def _empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory that NumPy asks of Linux comes in large pages, unlike torch's: at a third of the cost."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < _LARGE_BYTES:
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(size, dtype=np.uint8)).view(dtype).view(shape)
