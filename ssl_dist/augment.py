"""Random views of a batch: a pure function of (pixels, seed, epoch, sample id, view).

Crop, resize, flip and blur are linear and separable: one [S, H] and one [S, W] matrix an image, two batched products.
Brightness, contrast, saturation, hue and greyscale are affine in colour: one 3 x 4 matrix an image. Values are clamped
to [0, 1] once, at the end, where torchvision clamps after every operation; there is no mean/std normalisation.
Randomness is a 64-bit hash of (seed, epoch, sample id, view, draw), so a view does not depend on its batch, its
worker or on what was drawn before.

Shapes: N images, V views, H x W stored pixels, S output pixels a side.

Sources: SimCLR, arXiv 2002.05709, appendix A (crop, colour distortion, blur); torchvision's RandomResizedCrop (ten
tries, then the centre) and antialiased bilinear resize. Hue turns the colour about the grey axis by a linear map
(Haeberli, "Matrix Operations for Image Processing", 1993) where torchvision goes through HSV.
"""

from __future__ import annotations

import itertools
import math

import pydantic
import torch
from torch import Tensor

from ssl_dist.errors import ConfigError
from ssl_dist.order import fold

_CROP_TRIES = 10
_GREY = (0.299, 0.587, 0.114)  # ITU-R 601 luma
_COLOUR_OPERATIONS = 4


class View(pydantic.BaseModel):
    """What one view's random operations are drawn from. ``p``: probability; ranges are of torchvision's parameters."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    size_px: int | None = pydantic.Field(None, ge=1)  # side of the output; None: the stored height
    crop_scale: tuple[float, float] = (0.08, 1.0)  # share of the image's area
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height
    flip_p: float = pydantic.Field(0.5, ge=0, le=1)
    jitter_p: float = pydantic.Field(0.8, ge=0, le=1)
    jitter_strength: float = pydantic.Field(1.0, ge=0, le=1.25)  # times 0.8 brightness, contrast, saturation; 0.2 hue
    jitter_saturation: float | None = pydantic.Field(None, ge=0, le=1)  # in place of 0.8 times the strength
    grey_p: float = pydantic.Field(0.2, ge=0, le=1)
    blur_p: float = pydantic.Field(0.5, ge=0, le=1)
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels of the output
    solarise_p: float = pydantic.Field(0.0, ge=0, le=1)  # values of 0.5 and more are turned round

    @pydantic.model_validator(mode="after")
    def _ranges(self) -> View:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale {self.crop_scale}: two shares of the area, 0 < low <= high <= 1")
        for name, (low, high) in {"crop_ratio": self.crop_ratio, "blur_sigma": self.blur_sigma}.items():
            if not 0 < low <= high:
                raise ValueError(f"{name} {(low, high)}: 0 < low <= high")
        return self


Recipe = tuple[View, ...]

RECIPES: dict[str, Recipe] = {
    "simclr": (View(), View()),
    "simclr-small": (View(jitter_strength=0.5, blur_p=0.0),) * 2,  # google-research/simclr's setting for CIFAR-10
    "mocov2": (View(crop_scale=(0.2, 1.0), jitter_strength=0.5),) * 2,  # arXiv 2003.04297 and its code
    # BYOL, arXiv 2006.07733, table 6; Barlow Twins has the same
    "byol": (
        View(jitter_strength=0.5, jitter_saturation=0.2, blur_p=1.0),
        View(jitter_strength=0.5, jitter_saturation=0.2, blur_p=0.1, solarise_p=0.2),
    ),
    # for 32 px: BYOL's without blur
    "byol-small": (
        View(jitter_strength=0.5, jitter_saturation=0.2, blur_p=0.0),
        View(jitter_strength=0.5, jitter_saturation=0.2, blur_p=0.0, solarise_p=0.2),
    ),
    # FixMatch, arXiv 2001.07685: a weak and a strong view, without its RandAugment
    "weak-strong": (
        View(crop_scale=(0.75, 1.0), crop_ratio=(1.0, 1.0), jitter_p=0.0, grey_p=0.0, blur_p=0.0),
        View(crop_scale=(0.5, 1.0), jitter_p=0.8, solarise_p=0.2),
    ),
    "weak": (View(crop_scale=(0.75, 1.0), crop_ratio=(1.0, 1.0), jitter_p=0.0, grey_p=0.0, blur_p=0.0),),
    "none": (View(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip_p=0.0, jitter_p=0.0, grey_p=0.0, blur_p=0.0),),
}


def swav(
    size: int,
    small: int,
    num_small: int,
    *,
    scale: tuple[float, float] = (0.14, 1.0),
    small_scale: tuple[float, float] = (0.05, 0.14),
    strength: float = 1.0,
    blur_p: float = 0.5,
) -> Recipe:
    """SwAV's multi-crop (arXiv 2006.09882, section 4.1): two large views and ``num_small`` small ones."""
    large = View(size_px=size, crop_scale=scale, jitter_strength=strength, blur_p=blur_p)
    return (large,) * 2 + (large.model_copy(update={"size_px": small, "crop_scale": small_scale}),) * num_small


RECIPES |= {
    "swav": swav(224, 96, 6),
    "swav-96": swav(96, 48, 4),
    # for 32 px, where 5 % of an image would be 7 x 7 pixels: the shares that IMC-SwAV (arXiv 2103.07368) has for CIFAR
    "swav-small": swav(32, 16, 4, scale=(0.2, 1.0), small_scale=(0.08, 0.4), strength=0.5, blur_p=0.0),
}


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
            part.append(_one_view(rows, recipe[number], _Draws(fold(state, number)), size))
            number += 1
        made.append(torch.stack(part))
    return tuple(made)


def _to_float(images: Tensor, dtype: torch.dtype) -> Tensor:
    """[N, H, W * 3] in [0, 1]."""
    return images.to(dtype).flatten(2).mul_(1 / 255)


class _Draws:
    """Independent uniforms of each image: draw number k is a hash of its state and k."""

    def __init__(self, state: Tensor) -> None:
        self.state, self.count = state, 0  # int64 [N]

    def uniform(self, low: float = 0.0, high: float = 1.0, columns: int = 1) -> Tensor:
        """float32 [N, columns] in [low, high)."""
        numbers = torch.arange(self.count, self.count + columns, device=self.state.device)
        self.count += columns
        word = fold(self.state[:, None], numbers)
        return low + (high - low) * ((word >> 40) & 0xFFFFFF).to(torch.float32) / (1 << 24)

    def happens(self, p: float) -> Tensor:
        """bool [N], true with probability p."""
        return self.uniform()[:, 0] < p


def _one_view(rows: Tensor, view: View, draws: _Draws, size: int) -> Tensor:
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


def crop_boxes(draws: _Draws, view: View, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Crop boxes in whole pixels, as torchvision's RandomResizedCrop draws them.

    Returns:
        (top, left, height, width), each float32 ``[N]``.
    """
    low_ratio, high_ratio = (math.log(ratio) for ratio in view.crop_ratio)
    area = draws.uniform(*view.crop_scale, columns=_CROP_TRIES) * (height * width)
    ratio = draws.uniform(low_ratio, high_ratio, columns=_CROP_TRIES).exp()
    widths, heights = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    first = fits.to(torch.int8).argmax(1, keepdim=True)
    # No try fits: the largest centred box of an allowed ratio.
    spare_width, spare_height = _fallback_box(view, height, width)
    fitted = fits.any(1)
    crop_width = torch.where(fitted, widths.gather(1, first)[:, 0], spare_width)
    crop_height = torch.where(fitted, heights.gather(1, first)[:, 0], spare_height)
    where = draws.uniform(columns=2)
    where = torch.where(fitted[:, None], where, 0.5)
    top = (where[:, 0] * (height - crop_height + 1)).floor().clamp(max=height - crop_height)
    left = (where[:, 1] * (width - crop_width + 1)).floor().clamp(max=width - crop_width)
    return top, left, crop_height, crop_width


def _fallback_box(view: View, height: int, width: int) -> tuple[float, float]:
    ratio = min(max(width / height, view.crop_ratio[0]), view.crop_ratio[1])
    return float(min(width, round(height * ratio))), float(min(height, round(width / ratio)))


def resize_matrices(start: Tensor, length: Tensor, size: int, out: int) -> Tensor:
    """Antialiased bilinear resize of the pixels [start, start + length) of a line of ``size`` to ``out`` pixels.

    Args:
        start, length: float32 ``[N]``, whole numbers.

    Returns:
        float32 ``[N, out, size]``; rows sum to 1.
    """
    pixel = torch.arange(size, device=start.device, dtype=torch.float32) + 0.5
    target = torch.arange(out, device=start.device, dtype=torch.float32) + 0.5
    scale = (length / out)[:, None, None]
    centre = start[:, None, None] + target[:, None] * scale  # [N, out, 1]
    weight = (1 - (pixel - centre).abs() / scale.clamp(min=1)).clamp(min=0)  # triangle, widened where it shrinks
    inside = (pixel > start[:, None]) & (pixel < (start + length)[:, None])  # [N, size]
    weight = weight * inside[:, None, :]
    return weight / weight.sum(2, keepdim=True)


def blur_matrices(sigma: Tensor, size: int) -> Tensor:
    """Gaussian blur of a line with reflected borders, kernel of size // 10 taps made odd (SimCLR, appendix A).

    Args:
        sigma: float32 ``[N]``, pixels.

    Returns:
        float32 ``[N, size, size]``; rows sum to 1.
    """
    radius = max(1, size // 10 // 2)
    offset = torch.arange(-radius, radius + 1, device=sigma.device)
    kernel = torch.exp(-0.5 * (offset / sigma[:, None]) ** 2)  # [N, taps]
    kernel = kernel / kernel.sum(1, keepdim=True)
    source = torch.arange(size, device=sigma.device)[:, None] + offset  # [size, taps]
    source = torch.where(source < 0, -source, source)
    source = torch.where(source >= size, 2 * (size - 1) - source, source).clamp(0, size - 1)
    taps = torch.nn.functional.one_hot(source, size).to(torch.float32)  # [size, taps, size]
    return torch.einsum("nt,its->nis", kernel, taps)


def colour_matrices(draws: _Draws, view: View, mean: Tensor) -> Tensor:
    """Jitter in a random order, then greyscale, as one affine map of colour.

    Args:
        mean: float32 ``[N, 3]``, mean colour of each crop (contrast turns about the mean's grey).

    Returns:
        float32 ``[N, 3, 4]``: colour -> matrix[:, :, :3] @ colour + matrix[:, :, 3].
    """
    n, device = len(mean), mean.device
    strength = view.jitter_strength
    reach = 0.8 * strength
    low = max(0.0, 1 - reach)
    brightness, contrast = (draws.uniform(low, 1 + reach) for _ in range(2))
    if view.jitter_saturation is not None:
        low, reach = 1 - view.jitter_saturation, view.jitter_saturation
    saturation = draws.uniform(low, 1 + reach)
    hue = draws.uniform(-0.2 * strength, 0.2 * strength)[:, 0]
    order = draws.uniform(columns=_COLOUR_OPERATIONS).argsort(1)  # [N, 4]
    jittered, greyed = draws.happens(view.jitter_p), draws.happens(view.grey_p)
    grey = torch.tensor(_GREY, device=device).expand(3, 3)  # every row: the luma weights
    eye = torch.eye(3, device=device)
    zero = torch.zeros(n, 3, 1, device=device)
    linear = {
        0: brightness[:, :, None] * eye,
        1: contrast[:, :, None] * eye,
        2: saturation[:, :, None] * eye + (1 - saturation[:, :, None]) * grey,
        3: hue_matrices(hue),
    }
    colour = torch.cat([eye.expand(n, 3, 3), zero], dim=2)
    for position in range(_COLOUR_OPERATIONS):
        now = order[:, position, None, None]
        matrix = sum((torch.where(now == number, linear[number], 0.0) for number in linear), torch.zeros(()))
        mean_now = colour[:, :, :3] @ mean[:, :, None] + colour[:, :, 3:]  # [N, 3, 1]
        shift = torch.where(now == 1, (1 - contrast[:, :, None]) * (grey @ mean_now), 0.0)
        colour = matrix @ colour
        colour[:, :, 3:] += shift
    colour = torch.where(jittered[:, None, None], colour, torch.cat([eye.expand(n, 3, 3), zero], dim=2))
    return torch.where(greyed[:, None, None], grey @ colour, colour)


def hue_matrices(turn: Tensor) -> Tensor:
    """Rotation of colour about the grey axis that leaves luma unchanged, by ``turn`` full turns.

    Args:
        turn: float32 ``[N]``.

    Returns:
        float32 ``[N, 3, 3]``.
    """
    to_yiq = torch.tensor(
        [_GREY, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)], device=turn.device
    )
    angle = turn * (2 * math.pi)
    rotate = torch.zeros(len(turn), 3, 3, device=turn.device)
    rotate[:, 0, 0] = 1
    rotate[:, 1, 1] = rotate[:, 2, 2] = angle.cos()
    rotate[:, 1, 2], rotate[:, 2, 1] = -angle.sin(), angle.sin()
    turned: Tensor = torch.linalg.inv(to_yiq) @ rotate @ to_yiq
    return turned
