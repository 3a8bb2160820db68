"""What a view is made with: random numbers of each image, a hash of its state, in the laws of torchvision's operations.

Source: SimCLR, arXiv 2002.05709, appendix A; torchvision's RandomResizedCrop (ten tries, then the centre).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_dist.augment import series
from ssl_dist.augment.recipes import View
from ssl_dist.hashing import fold

_CROP_TRIES = 10
_DRAWS = 35  # of a view


class Draws:
    """Independent uniforms of each image: draw number k is a hash of its state and k."""

    def __init__(self, state: Tensor) -> None:
        """
        Args:
            state: int64 ``[N]``.
        """
        word = fold(state[:, None], torch.arange(_DRAWS, device=state.device))
        self._uniforms, self._count = ((word >> 40) & 0xFFFFFF).to(torch.float32) / (1 << 24), 0

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """float32 [N] in [low, high], ``high`` by rounding only."""
        return self.uniforms(1, low, high)[:, 0]

    def uniforms(self, columns: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """float32 [N, columns], as ``uniform``."""
        taken = self._uniforms[:, self._count : self._count + columns]
        self._count += columns
        assert taken.shape[1] == columns, "a view has _DRAWS draws"
        return low + (high - low) * taken

    def happens(self, p: float) -> Tensor:
        """bool [N], true with probability p."""
        return self.uniform() < p


class Drawn(NamedTuple):
    """What one view of N images is made with; each ``[N]``, float32 where it is no bool.

    Attributes:
        top, left, height, width: the crop's box, whole pixels.
        flipped: left for right.
        quarter_turns: 0 to 3, counterclockwise, after the flip.
        brightness, contrast, saturation: factors as torchvision's; a grey image has saturation 0.
        hue: in full turns.
        blur_sigma: pixels of the output; 0: no blur.
        solarised: whether values of 0.5 and more are turned round.
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


def draw(state: Tensor, view: View, height: int, width: int) -> Drawn:
    """Draw one view of each image.

    Every number is drawn whether or not its operation happens: views with some operations off are otherwise the same.

    Args:
        state: int64 ``[N]``, hashed.
        height, width: stored pixels.
    """
    draws = Draws(state)
    box = crop_boxes(draws, view, height, width)
    flipped = draws.happens(view.flip_p)
    turned = draws.happens(view.rotation_p)
    quarter_turns = torch.where(turned, draws.uniform(1, 4).floor(), 0.0)
    jittered = draws.happens(view.jitter_p)
    reach = 0.8 * view.jitter_strength
    saturation_reach = reach if view.jitter_saturation is None else view.jitter_saturation
    factors = [draws.uniform(max(0.0, 1 - each), 1 + each) for each in (reach, reach, saturation_reach)]
    hue = draws.uniform(-0.2 * view.jitter_strength, 0.2 * view.jitter_strength)
    brightness, contrast, saturation = (torch.where(jittered, factor, 1.0) for factor in factors)
    return Drawn(
        *box,
        flipped,
        quarter_turns,
        brightness,
        contrast,
        saturation=torch.where(draws.happens(view.grey_p), 0.0, saturation),
        hue=torch.where(jittered, hue, 0.0),
        blur_sigma=torch.where(draws.happens(view.blur_p), draws.uniform(*view.blur_sigma), 0.0),
        solarised=draws.happens(view.solarise_p),
    )


def crop_boxes(draws: Draws, view: View, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Crop boxes in whole pixels, as torchvision's RandomResizedCrop draws them; the whole image where none happens.

    Returns:
        (top, left, height, width), each float32 ``[N]``.
    """
    cropped = draws.happens(view.crop_p)
    low_ratio, high_ratio = (math.log(ratio) for ratio in view.crop_ratio)
    area = draws.uniforms(_CROP_TRIES, *view.crop_scale) * (height * width)
    ratio = series.exp(draws.uniforms(_CROP_TRIES, low_ratio, high_ratio))
    widths, heights = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    first = fits.to(torch.int8).argmax(1, keepdim=True)
    fitted = fits.any(1)
    # No try fits: the largest centred box of an allowed ratio.
    spare_width, spare_height = _fallback_box(view, height, width)
    crop_width = torch.where(fitted, widths.gather(1, first)[:, 0], spare_width)
    crop_height = torch.where(fitted, heights.gather(1, first)[:, 0], spare_height)
    down, right = (torch.where(fitted, draws.uniform(), 0.5) for _ in range(2))
    top, left = (down * (height - crop_height + 1)).floor(), (right * (width - crop_width + 1)).floor()
    whole = (0.0, 0.0, float(height), float(width))
    box = (
        torch.where(cropped, one, all_) for one, all_ in zip((top, left, crop_height, crop_width), whole, strict=True)
    )
    return tuple(box)  # type: ignore[return-value]


def _fallback_box(view: View, height: int, width: int) -> tuple[float, float]:
    ratio = min(max(width / height, view.crop_ratio[0]), view.crop_ratio[1])
    return float(min(width, round(height * ratio))), float(min(height, round(width / ratio)))
