"""The operations of a view as matrices, each image with its own: crop, resize, blur, colour.

Sources: SimCLR, arXiv 2002.05709, appendix A (crop, colour distortion, blur); torchvision's RandomResizedCrop (ten
tries, then the centre) and antialiased bilinear resize. Hue turns the colour about the grey axis by a linear map
(Haeberli, "Matrix Operations for Image Processing", 1993) where torchvision goes through HSV.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssl_dist.augment.recipes import View
from ssl_dist.order import fold

_CROP_TRIES = 10
GREY = (0.299, 0.587, 0.114)  # ITU-R 601 luma
_COLOUR_OPERATIONS = 4


class Draws:
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


def crop_boxes(draws: Draws, view: View, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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


def colour_matrices(draws: Draws, view: View, mean: Tensor) -> Tensor:
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
    grey = torch.tensor(GREY, device=device).expand(3, 3)  # every row: the luma weights
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
    to_yiq = torch.tensor([GREY, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)], device=turn.device)
    angle = turn * (2 * math.pi)
    rotate = torch.zeros(len(turn), 3, 3, device=turn.device)
    rotate[:, 0, 0] = 1
    rotate[:, 1, 1] = rotate[:, 2, 2] = angle.cos()
    rotate[:, 1, 2], rotate[:, 2, 1] = -angle.sin(), angle.sin()
    turned: Tensor = torch.linalg.inv(to_yiq) @ rotate @ to_yiq
    return turned
