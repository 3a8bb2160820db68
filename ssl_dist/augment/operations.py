"""The operations of a view on given parameters.

Crop, resize, flip and blur are linear and separable: a line of the view is a weighted sum of a few lines of the image,
its *taps*. Brightness, contrast, saturation, hue and grey are one affine map of colour.

Shapes: N images, H x W stored pixels, S x S of the output, K taps of a line.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from ssl_dist.augment.draws import Drawn

GREY = (0.299, 0.587, 0.114)  # ITU-R 601 luma
_IN_PHASE, _QUADRATURE = (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)  # of the NTSC's YIQ


class Taps(NamedTuple):
    """Each of S lines as a weighted sum of K lines of an image.

    Attributes:
        lines: int64 ``[N, S, K]``, their numbers.
        weight: float32 ``[N, S, K]``; sums to 1 over the taps.
    """

    lines: Tensor
    weight: Tensor

    def part(self, some: slice) -> Taps:
        return Taps(self.lines[some], self.weight[some])


class Maps(NamedTuple):
    """What one view does to each of N images.

    Attributes:
        down, right: taps of the view's rows and columns: crop, resize, flip and a rotation's flips.
        blurred: int64, the numbers of the images that are.
        blur: taps ``[len(blurred), S, K]`` of both their rows and columns.
        transposed: bool ``[N]``, the rest of a rotation.
        matrix, grey: of ``colour``.
        solarised: bool ``[N]``.
    """

    down: Taps
    right: Taps
    blurred: Tensor
    blur: Taps
    transposed: Tensor
    matrix: Tensor
    grey: Tensor
    solarised: Tensor

    @classmethod
    def of(cls, drawn: Drawn, height: int, width: int, size: int) -> Maps:
        """Of stored images of height x width."""
        # Counterclockwise by one quarter: mirror, then transpose; by two: both ways; by three: invert, then transpose.
        quarters = drawn.quarter_turns
        mirrored = drawn.flipped ^ (quarters == 1) ^ (quarters == 2)
        inverted = (quarters == 2) | (quarters == 3)
        blurred = drawn.blur_sigma.nonzero()[:, 0]
        return cls(
            resize_taps(drawn.top, drawn.height, inverted, height, size),
            resize_taps(drawn.left, drawn.width, mirrored, width, size),
            blurred,
            blur_taps(drawn.blur_sigma[blurred], size),
            quarters % 2 == 1,
            *colour(drawn),
            drawn.solarised,
        )

    def part(self, some: slice) -> Maps:
        """Of some of the images."""
        first, last = torch.searchsorted(self.blurred, self.blurred.new_tensor([some.start, some.stop])).tolist()
        return Maps(
            self.down.part(some),
            self.right.part(some),
            self.blurred[first:last] - some.start,
            self.blur.part(slice(first, last)),
            self.transposed[some],
            self.matrix[some],
            self.grey[some],
            self.solarised[some],
        )


def render(images: Tensor, maps: Maps, size: int) -> Tensor:
    """Make one view.

    Args:
        images: float32 ``[N, 3, W, H]`` in [0, 1], columns first.
        maps: what is done to each.
        size: S, pixels.

    Returns:
        float32 ``[N, 3, S, S]``.
    """
    columns = _blur(combine(images, maps.right), maps)  # [N, 3, S, H]
    view = _blur(combine(columns.mT, maps.down), maps)  # [N, 3, S, S]
    if bool(maps.transposed.any()):
        view = torch.where(maps.transposed[:, None, None, None], view.mT, view)
    view = view.flatten(2)
    luma = view.mean(2) @ view.new_tensor(GREY)  # [N]
    view = torch.baddbmm((maps.grey * luma)[:, None, None], maps.matrix, view)
    if bool(maps.solarised.any()):
        view = torch.where(maps.solarised[:, None, None] & (view >= 0.5), 1 - view, view)
    return view.clamp_(0, 1).view(-1, 3, size, size)


def _blur(planes: Tensor, maps: Maps) -> Tensor:
    if not len(maps.blurred):
        return planes
    return planes.index_copy_(0, maps.blurred, combine(planes, maps.blur, maps.blurred))


def combine(planes: Tensor, taps: Taps, which: Tensor | None = None) -> Tensor:
    """Each plane's lines, combined.

    Args:
        planes: float32 ``[M, 3, L, R]``: L lines of R pixels.
        taps: of N images.
        which: int64 ``[N]``, their numbers among the M; all by default.

    Returns:
        ``[N, 3, S, R]``.
    """
    _, colours, num_lines, length = planes.shape
    n, size, num_taps = taps.lines.shape
    first = torch.arange(n, device=planes.device) if which is None else which
    plane = first[:, None] * colours + torch.arange(colours, device=planes.device)  # [N, 3]
    lines = plane[:, :, None, None] * num_lines + taps.lines[:, None]  # [N, 3, S, K]
    weight = taps.weight[:, None].expand(-1, colours, -1, -1)
    made: Tensor = embedding_bag(  # of all there is, what sums weighted rows of a matrix in one go
        lines.view(-1, num_taps),
        planes.reshape(-1, length),
        mode="sum",
        per_sample_weights=weight.reshape(-1, num_taps),
    )
    return made.view(n, colours, size, length)


def resize_taps(start: Tensor, length: Tensor, reverse: Tensor, size: int, out: int) -> Taps:
    """Antialiased bilinear resize of the pixels [start, start + length) of a line of ``size`` to ``out`` pixels.

    Args:
        start, length: float32 ``[N]``, whole numbers.
        reverse: bool ``[N]``, whether the result runs from the last pixel to the first.
    """
    target = torch.arange(out, device=start.device) + 0.5
    target = torch.where(reverse[:, None], out - target, target)  # [N, S]
    scale = (length / out)[:, None]
    reach = scale.clamp(min=1)[:, None]  # of the triangle, widened where it shrinks
    centre = (target * scale)[:, None]  # [N, 1, S], from the crop's edge
    tap = torch.arange(math.ceil(2 * max(1, size / out)), device=start.device)
    pixel = (centre - reach + 0.5).floor() + tap[:, None]  # [N, K, S]
    weight = (1 - (pixel + 0.5 - centre).abs() / reach).clamp_(min=0)
    inside = pixel.clamp(min=0).minimum(length[:, None, None] - 1)
    weight = torch.where(pixel == inside, weight, 0.0)  # none beyond the crop
    weight = weight / weight.sum(1, keepdim=True)
    return Taps((inside + start[:, None, None]).long().mT.contiguous(), weight.mT.contiguous())


def blur_taps(sigma: Tensor, size: int) -> Taps:
    """Gaussian blur with reflected borders, of S // 10 taps made odd (SimCLR, appendix A), at least 3.

    Args:
        sigma: float32 ``[N]``, pixels.
    """
    radius = min(max(1, size // 10 // 2), size - 1)
    offset = torch.arange(-radius, radius + 1, device=sigma.device)
    kernel = torch.softmax(-0.5 * (offset / sigma[:, None]) ** 2, dim=1)  # [N, K]
    line = (torch.arange(size, device=sigma.device)[:, None] + offset).abs()
    line = size - 1 - (size - 1 - line).abs()  # [S, K]
    return Taps(line.expand(len(sigma), -1, -1), kernel[:, None].expand(-1, size, -1))


def colour(drawn: Drawn) -> tuple[Tensor, Tensor]:
    """Brightness, contrast, saturation and hue as one affine map of colour; they commute, so they have no order.

        colour -> brightness (contrast turn(colour) + (1 - contrast) luma of the mean colour)

    where ``turn`` leaves luma alone, multiplies what is not grey by saturation and turns it by hue about the grey axis
    (Haeberli, "Matrix Operations for Image Processing", 1993). torchvision's hue goes through HSV.

    Returns:
        (matrix ``[N, 3, 3]``, grey ``[N]``), float32: colour -> matrix @ colour + grey * luma of the mean colour.
    """
    device = drawn.hue.device
    to_yiq = torch.tensor([GREY, _IN_PHASE, _QUADRATURE], device=device)
    quarter = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]], device=device)  # of I and Q
    across = torch.linalg.inv(to_yiq) @ quarter @ to_yiq
    luma = to_yiq[:1].expand(3, 3)
    chroma = torch.eye(3, device=device) - luma
    angle = drawn.hue * (2 * math.pi)
    along, turned = (drawn.saturation * part for part in (angle.cos(), angle.sin()))
    turn = luma + along[:, None, None] * chroma + turned[:, None, None] * across
    gain = drawn.brightness * drawn.contrast
    return gain[:, None, None] * turn, drawn.brightness * (1 - drawn.contrast)
