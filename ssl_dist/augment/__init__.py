"""Random views of a batch: a pure function of (pixels, seed, epoch, sample id, view).

Crop, resize, flip and blur are linear and separable: one [S, H] and one [S, W] matrix an image, two batched products.
Brightness, contrast, saturation, hue and greyscale are affine in colour: one 3 x 4 matrix an image. Values are clamped
to [0, 1] once, at the end, where torchvision clamps after every operation; there is no mean/std normalisation.
Randomness is a 64-bit hash of (seed, epoch, sample id, view, draw), so a view does not depend on its batch, its
worker or on what was drawn before.

Shapes: N images, V views, H x W stored pixels, S output pixels a side.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ssl_dist.augment.operations import Draws, blur_matrices, colour_matrices, crop_boxes, resize_matrices
from ssl_dist.augment.recipes import RECIPES, Recipe, View
from ssl_dist.errors import ConfigError
from ssl_dist.order import fold

__all__ = ["RECIPES", "Recipe", "View", "crops", "views"]


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
        dtype: of the result and the products, float32 or bfloat16 (the parameters are float32 either way).

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
    epochs = torch.as_tensor(epoch, device=images.device).expand(len(ids))
    rows = _to_float(images, dtype)
    state = fold(fold(fold(torch.zeros_like(ids), seed), epochs), ids)
    made, number = [], 0
    for size, alike in itertools.groupby(view.size_px or images.shape[1] for view in recipe):
        part = []
        for _ in alike:
            part.append(_one_view(rows, recipe[number], Draws(fold(state, number)), size))
            number += 1
        made.append(torch.stack(part))
    return tuple(made)


def _to_float(images: Tensor, dtype: torch.dtype) -> Tensor:
    """[N, H, W * 3] in [0, 1]."""
    return images.to(dtype).flatten(2).mul_(1 / 255)


def _one_view(rows: Tensor, view: View, draws: Draws, size: int) -> Tensor:
    """[N, H, W * 3] -> [N, 3, S, S]."""
    n, height, width = rows.shape[0], rows.shape[1], rows.shape[2] // 3
    top, left, crop_height, crop_width = crop_boxes(draws, view, height, width)
    vertical = resize_matrices(top, crop_height, height, size)  # [N, S, H]
    horizontal = resize_matrices(left, crop_width, width, size)  # [N, S, W]
    horizontal = torch.where(draws.happens(view.flip_p)[:, None, None], horizontal.flip(1), horizontal)
    blurred = draws.happens(view.blur_p)
    sigma = draws.uniform(*view.blur_sigma)[:, 0]
    if view.blur_p > 0 and bool(blurred.any()):
        blur = blur_matrices(sigma[blurred], size)
        vertical[blurred] = blur @ vertical[blurred]
        horizontal[blurred] = blur @ horizontal[blurred]
    half = torch.bmm(vertical.to(rows.dtype), rows).view(n, size, width, 3)  # [N, S, W, 3]
    half = half.transpose(1, 2).reshape(n, width, size * 3)  # [N, W, S * 3]
    crop = torch.bmm(horizontal.to(rows.dtype), half).view(n, size * size, 3)  # [N, S * S, 3], columns before rows
    colour = colour_matrices(draws, view, crop.mean(1, dtype=torch.float32)).to(rows.dtype)  # [N, 3, 4]
    out = torch.baddbmm(colour[:, :, 3:], colour[:, :, :3], crop.transpose(1, 2)).clamp_(0, 1)  # [N, 3, S * S]
    if view.solarise_p > 0:
        turned = draws.happens(view.solarise_p)[:, None, None] & (out >= 0.5)
        out = torch.where(turned, 1 - out, out)
    return out.view(n, 3, size, size).transpose(2, 3)
