"""Random parameters of views: each number is a hash of the image's state, distributed as in torchvision's operations.

Source: SimCLR, arXiv 2002.05709, appendix A; torchvision's RandomResizedCrop (ten tries, then the centre).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_dist.augment import series
from ssl_dist.augment.policies import View
from ssl_dist.hashing import fold

_CROP_TRIES = 10
_NUMBERS_PER_VIEW = 35


class RandomNumbers:
    """Independent uniform random numbers of each image: number k is a hash of the image's state and k.

    Args:
        state: int64 ``[N]``.
    """

    def __init__(self, state: Tensor) -> None:
        word = fold(state[:, None], torch.arange(_NUMBERS_PER_VIEW, device=state.device))
        self._numbers, self._used = ((word >> 40) & 0xFFFFFF).to(torch.float32) / (1 << 24), 0

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Draw float32 ``[N]`` from [low, high); rounding may give ``high``."""
        return self.uniforms(1, low, high)[:, 0]

    def uniforms(self, columns: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Draw float32 ``[N, columns]`` as ``uniform`` does."""
        numbers = self._numbers[:, self._used : self._used + columns]
        self._used += columns
        assert numbers.shape[1] == columns, "a view draws _NUMBERS_PER_VIEW numbers"
        return low + (high - low) * numbers

    def happens(self, p: float) -> Tensor:
        """Draw bool ``[N]``, true with probability p."""
        return self.uniform() < p


class ViewParameters(NamedTuple):
    """Parameters of one view of N images; each field is ``[N]``, bool or float32.

    Attributes:
        top, left, height, width: the crop's box in whole pixels.
        flipped: whether the view is mirrored horizontally.
        quarter_turns: 0 to 3, counterclockwise, after the flip.
        brightness, contrast, saturation: factors as torchvision's; a grey view has saturation 0.
        hue: in full turns.
        blur_sigma: in pixels of the view; 0: no blur.
        solarised: whether values of 0.5 and more are inverted.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flipped: Tensor
    quarter_turns: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    blur_sigma: Tensor
    solarised: Tensor


def draw_parameters(state: Tensor, view: View, height: int, width: int) -> ViewParameters:
    """Draw the parameters of one view of each image.

    Every number is drawn even if its operation is off, so that turning one operation off leaves the others unchanged.

    Args:
        state: int64 ``[N]``, a hash.
        view: the view's settings.
        height, width: of the stored images, pixels.
    """
    numbers = RandomNumbers(state)
    box = crop_boxes(numbers, view, height, width)
    flipped = numbers.happens(view.flip_p)
    rotated = numbers.happens(view.rotation_p)
    quarter_turns = torch.where(rotated, numbers.uniform(1, 4).floor(), 0.0)
    jittered = numbers.happens(view.jitter_p)
    reach = 0.8 * view.jitter_strength
    saturation_reach = reach if view.jitter_saturation is None else view.jitter_saturation
    factors = [numbers.uniform(max(0.0, 1 - each), 1 + each) for each in (reach, reach, saturation_reach)]
    hue = numbers.uniform(-0.2 * view.jitter_strength, 0.2 * view.jitter_strength)
    brightness, contrast, saturation = (torch.where(jittered, factor, 1.0) for factor in factors)
    return ViewParameters(
        *box,
        flipped,
        quarter_turns,
        brightness,
        contrast,
        saturation=torch.where(numbers.happens(view.grey_p), 0.0, saturation),
        hue=torch.where(jittered, hue, 0.0),
        blur_sigma=torch.where(numbers.happens(view.blur_p), numbers.uniform(*view.blur_sigma), 0.0),
        solarised=numbers.happens(view.solarise_p),
    )


def crop_boxes(numbers: RandomNumbers, view: View, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw crop boxes in whole pixels, as torchvision's RandomResizedCrop does; no crop is a box of the whole image.

    Returns:
        (top, left, height, width), each float32 ``[N]``.
    """
    cropped = numbers.happens(view.crop_p)
    low_ratio, high_ratio = (math.log(ratio) for ratio in view.crop_ratio)
    area = numbers.uniforms(_CROP_TRIES, *view.crop_scale) * (height * width)
    ratio = series.exp(numbers.uniforms(_CROP_TRIES, low_ratio, high_ratio))
    widths, heights = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    first_fit = fits.to(torch.int8).argmax(1, keepdim=True)
    any_fit = fits.any(1)
    fallback_width, fallback_height = _fallback_box(view, height, width)
    crop_width = torch.where(any_fit, widths.gather(1, first_fit)[:, 0], fallback_width)
    crop_height = torch.where(any_fit, heights.gather(1, first_fit)[:, 0], fallback_height)
    down, right = (torch.where(any_fit, numbers.uniform(), 0.5) for _ in range(2))
    top, left = (down * (height - crop_height + 1)).floor(), (right * (width - crop_width + 1)).floor()
    whole = (0.0, 0.0, float(height), float(width))
    crop = (top, left, crop_height, crop_width)
    return tuple(torch.where(cropped, *sides) for sides in zip(crop, whole, strict=True))  # type: ignore[return-value]


def _fallback_box(view: View, height: int, width: int) -> tuple[float, float]:
    """Return width and height of the largest box of an allowed ratio, for images that no try fits."""
    ratio = min(max(width / height, view.crop_ratio[0]), view.crop_ratio[1])
    return float(min(width, round(height * ratio))), float(min(height, round(width / ratio)))
