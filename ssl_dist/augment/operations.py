"""The operations of a view on given parameters.

Crop, resize, flip and blur are linear and separable: a line of the view is a weighted sum of a few lines of the image,
its *taps*. Brightness, contrast, saturation, hue and grey are one affine map of colour.

Shapes: N images, H x W stored pixels, S x S of the output, K taps of a line.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from ssl_dist.augment.draws import Drawn

GREY = (0.299, 0.587, 0.114)  # ITU-R 601 luma
_LUMA = torch.tensor(GREY)
_IN_PHASE, _QUADRATURE = (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)  # of the NTSC's YIQ


class Taps(NamedTuple):
    """Each of S lines as a weighted sum of K lines of an image.

    Attributes:
        lines: int32 ``[N, S, K]``, or ``[S, K]`` for all; their numbers.
        weight: float32 ``[N, S, K]``, or ``[N, 1, K]`` for all; sums to 1 over the taps.
    """

    lines: Tensor
    weight: Tensor

    def part(self, some: slice) -> Taps:
        return Taps(self.lines[some], self.weight[some])


class Maps(NamedTuple):
    """What one view does to each of N images.

    Attributes:
        down, right: taps of the view's rows and columns: crop, resize, flip and a rotation's flips.
        blurred: bool ``[N]``.
        kernel: float32 ``[N, K]`` of the blur, of rows and columns.
        transposed: bool ``[N]``, the rest of a rotation.
        matrix, grey: of ``colour``.
        solarised: bool ``[N]``.
    """

    down: Taps
    right: Taps
    blurred: Tensor
    kernel: Tensor
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
        return cls(
            resize_taps(drawn.top, drawn.height, inverted, height, size),
            resize_taps(drawn.left, drawn.width, mirrored, width, size),
            drawn.blur_sigma > 0,
            blur_kernels(drawn.blur_sigma, size),
            quarters % 2 == 1,
            *colour(drawn),
            drawn.solarised,
        )

    def part(self, some: slice) -> Maps:
        """Of some of the images."""
        down, right = self.down.part(some), self.right.part(some)
        blurred, kernel, transposed, matrix, grey, solarised = (each[some] for each in self[2:])
        return Maps(down, right, blurred, kernel, transposed, matrix, grey, solarised)


def render(columns: Tensor, maps: Maps, size: int) -> Tensor:
    """Make one view.

    Args:
        columns: float32 ``[N, W, 3, H]`` in [0, 1], of the images, contiguous.
        maps: what is done to each.
        size: S, pixels.

    Returns:
        float32 ``[N, 3, S, S]``.
    """
    n, width, _, height = columns.shape
    blurred = maps.blurred.nonzero()[:, 0]
    blur = blur_taps(maps.kernel[blurred], size)
    columns = _blur(combine(columns.view(n, 1, width, 3 * height), maps.right), blur, blurred)  # [N, 1, S, 3 * H]
    rows = columns.mT.contiguous().view(n, 3, height, size)
    view = _blur(combine(rows, maps.down), blur, blurred)  # [N, 3, S, S]
    transposed = maps.transposed.nonzero()[:, 0]
    if len(transposed):
        view.index_copy_(0, transposed, view[transposed].mT)
    view = view.view(n, 3, size * size)
    luma = view.mean(2) @ _LUMA.to(view.device)  # [N]
    view = torch.baddbmm((maps.grey * luma)[:, None, None], maps.matrix, view)
    solarised = maps.solarised.nonzero()[:, 0]
    if len(solarised):
        bright = view[solarised]
        view.index_copy_(0, solarised, torch.minimum(bright, 1 - bright))  # 1 - x is the lesser from 0.5 on
    return view.clamp_(0, 1).view(n, 3, size, size)


def combine(images: Tensor, taps: Taps, which: Tensor | None = None) -> Tensor:
    """Lines of images, combined.

    Args:
        images: float32 ``[M, C, L, R]``: of each C sets of L lines of R values, contiguous.
        taps: of N images, the same for all sets of one.
        which: int64 ``[N]``, their numbers among the M; all by default.

    Returns:
        ``[N, C, S, R]``.
    """
    num_images, num_sets, num_lines, length = images.shape
    end = num_images * num_sets * num_lines
    first = torch.arange(0, end, num_lines, dtype=torch.int32, device=images.device).view(-1, num_sets)
    first = first if which is None else first[which]  # [N, C]
    lines = taps.lines.unsqueeze(-3) + first[:, :, None, None]  # [N, C, S, K]
    made: Tensor = embedding_bag(  # of all there is, what sums weighted rows of a matrix in one go
        lines.flatten(0, 2),
        images.view(-1, length),
        mode="sum",
        per_sample_weights=taps.weight[:, None].expand_as(lines).reshape(-1, lines.shape[-1]),
    )
    return made.view(*lines.shape[:3], length)


def _blur(images: Tensor, taps: Taps, blurred: Tensor) -> Tensor:
    """In place: the lines of the images with the numbers ``blurred``."""
    return images.index_copy_(0, blurred, combine(images, taps, blurred)) if len(blurred) else images


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
    return Taps((inside + start[:, None, None]).int().mT.contiguous(), weight.mT.contiguous())


def blur_kernels(sigma: Tensor, size: int) -> Tensor:
    """Of a Gaussian blur of S // 10 taps made odd (SimCLR, appendix A), at least 3, unless the borders are nearer.

    Args:
        sigma: float32 ``[N]``, pixels; 0: no blur.

    Returns:
        float32 ``[N, K]``; sums to 1.
    """
    radius = min(max(1, size // 10 // 2), size - 1)
    offset = torch.arange(-radius, radius + 1, device=sigma.device)
    return torch.softmax(-0.5 * (offset / sigma.clamp(min=1e-6)[:, None]) ** 2, dim=1)


def blur_taps(kernel: Tensor, size: int) -> Taps:
    """Of S lines with reflected borders.

    Args:
        kernel: ``[N, K]``.
    """
    return Taps(_reflected(size, kernel.shape[1], kernel.device), kernel[:, None])


@functools.lru_cache
def _reflected(size: int, num_taps: int, device: torch.device) -> Tensor:
    """int32 ``[S, K]``: the lines under the kernel at each line; kept, as it is asked for with every cacheful."""
    tap = torch.arange(num_taps, dtype=torch.int32, device=device) - num_taps // 2
    line = (torch.arange(size, dtype=torch.int32, device=device)[:, None] + tap).abs()
    return size - 1 - (size - 1 - line).abs()


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
