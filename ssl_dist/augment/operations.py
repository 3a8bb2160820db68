"""The operations of a view on given parameters.

Crop, resize, flip and blur are linear and separable: a line of the view is a weighted sum of a few lines of the image,
its *taps*. Brightness, contrast, saturation, hue and grey are one affine map of colour.

A view depends on its own image alone, to the last bit: its sums run in one order, whatever is rendered beside it. A
library's matrix product does not promise that: the number of images may choose its code.

Shapes: N images, H x W stored pixels, S x S of the output, K taps of a line.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_dist.augment import series
from ssl_dist.augment.draws import Drawn

GREY = (0.299, 0.587, 0.114)  # ITU-R 601 luma
_LUMA = torch.tensor(GREY)
_TO_YIQ = torch.tensor([GREY, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)])  # the NTSC's
_QUARTER = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])  # turns I and Q
_ACROSS = torch.linalg.inv(_TO_YIQ) @ _QUARTER @ _TO_YIQ


class Taps(NamedTuple):
    """Each of S lines as a weighted sum of K lines of an image.

    Attributes:
        lines: int32 ``[N, S, K]``, or ``[S, K]`` for all; their numbers.
        weight: float32 ``[N, S, K]``, or ``[N, 1, K]`` for all; sums to 1 over the taps, of a blur's change to 0.
    """

    lines: Tensor
    weight: Tensor


class Bags(NamedTuple):
    """Taps as ``embedding_bag`` has them, of C sets of lines of each image, the same for all sets.

    Attributes:
        lines: int32 ``[N, C * S, K]``, numbers among all lines of the images that are rendered together.
        weight: float32 ``[N, C * S, K]``.
    """

    lines: Tensor
    weight: Tensor

    @classmethod
    def of(cls, taps: Taps, places: Tensor, num_sets: int, num_lines: int) -> Bags:
        """Of sets of ``num_lines`` lines; ``places``, int64 ``[N]``: which of the images rendered together each is."""
        sets = torch.arange(num_sets, device=places.device)
        first = ((places[:, None] * num_sets + sets) * num_lines).int()  # [N, C]
        lines = taps.lines.unsqueeze(-3) + first[:, :, None, None]  # [N, C, S, K]
        return cls(lines.flatten(1, 2), taps.weight.unsqueeze(1).expand(lines.shape).flatten(1, 2).contiguous())

    def split(self, counts: list[int]) -> list[Bags]:
        """Of so many images each."""
        return [Bags(*both) for both in zip(self.lines.split(counts), self.weight.split(counts), strict=True)]

    def sums(self, lines: Tensor) -> Tensor:
        """Of lines of R values, float32 ``[.., R]``, contiguous: ``[N, C * S, R]``."""
        num_images, num_sums, num_taps = self.lines.shape
        made = torch.embedding_bag(  # of all there is, what sums weighted rows of a matrix in one go
            lines.view(-1, lines.shape[-1]),
            self.lines.view(-1),
            _starts(num_images * num_sums, num_taps, lines.device),
            mode=0,  # a sum; torch.nn.functional's function takes longer on its way here
            per_sample_weights=self.weight.view(-1),
        )[0]
        return made.view(num_images, num_sums, lines.shape[-1])


def _starts(bags: int, num_taps: int, device: torch.device) -> Tensor:
    """int32 ``[bags]``: the first tap of each."""
    return _multiples(1 << bags.bit_length(), num_taps, device)[:bags]


@functools.lru_cache
def _multiples(count: int, of: int, device: torch.device) -> Tensor:
    """int32 ``[count]``; kept, as it is asked for with every lot of images."""
    return torch.arange(0, count * of, of, dtype=torch.int32, device=device)


class Maps(NamedTuple):
    """What one view does to each of N images that are rendered together.

    Attributes:
        right, down: of the view's columns, all channels at once, and of its rows, of each channel: crop, resize, flip
            and a rotation's flips.
        blurred: int64 ``[B]``, which images are.
        blur_right, blur_down: what is added to the lines of these.
        transposed: int64 ``[T]``, which images are, for the rest of a rotation.
        colours: each channel as a weighted sum of the three.
        grey: float32 ``[N, 3]``, the share of each channel's mean that is added to all.
        solarised: int64 ``[Z]``, which images are.
    """

    right: Bags
    down: Bags
    blurred: Tensor
    blur_right: Bags
    blur_down: Bags
    transposed: Tensor
    colours: Bags
    grey: Tensor
    solarised: Tensor


def maps_of(drawn: Drawn, height: int, width: int, size: int, together: list[int]) -> list[Maps]:
    """What is drawn, as it is done.

    Args:
        drawn: of ``sum(together)`` images.
        height, width: of the stored images, pixels.
        size: S, of the view.
        together: how many images are rendered at a time.

    Returns:
        Of each of ``together``.
    """
    # Counterclockwise by one quarter: mirror, then transpose; by two: both ways; by three: invert, then transpose.
    quarters, blurred = drawn.quarter_turns, drawn.blur_sigma > 0
    mirrored = drawn.flipped ^ (quarters == 1) ^ (quarters == 2)
    inverted = (quarters == 2) | (quarters == 3)
    counts = torch.tensor(together, device=quarters.device)
    times = torch.arange(len(together), device=quarters.device).repeat_interleave(counts)
    places = torch.arange(len(times), device=quarters.device) - (counts.cumsum(0) - counts)[times]

    def which(happens: Tensor) -> list[Tensor]:
        return list(places[happens].split(times[happens].bincount(minlength=len(together)).tolist()))

    blurred_ones = which(blurred)
    blur = blur_taps(blur_kernels(drawn.blur_sigma[blurred], size), size)
    num_blurred = [len(each) for each in blurred_ones]
    matrix, grey = colour(drawn)
    channels = torch.arange(3, dtype=torch.int32, device=places.device).expand(3, 3)
    return [
        Maps(*each)
        for each in zip(
            Bags.of(resize_taps(drawn.left, drawn.width, mirrored, width, size), places, 1, width).split(together),
            Bags.of(resize_taps(drawn.top, drawn.height, inverted, height, size), places, 3, height).split(together),
            blurred_ones,
            Bags.of(blur, places[blurred], 1, size).split(num_blurred),
            Bags.of(blur, places[blurred], 3, size).split(num_blurred),
            which(quarters % 2 == 1),
            Bags.of(Taps(channels, matrix), places, 1, 3).split(together),
            grey.split(together),
            which(drawn.solarised),
            strict=True,
        )
    ]


def render(columns: Tensor, maps: Maps, out: Tensor) -> None:
    """Make one view.

    Args:
        columns: float32 ``[N, W, 3, H]`` in [0, 1], of the images, contiguous.
        maps: what is done to each.
        out: float32 or bfloat16 ``[N, 3, S, S]``, contiguous; becomes the view, in [0, 1].
    """
    n, width, _, height = columns.shape
    size = out.shape[-1]
    view = maps.right.sums(columns.view(n * width, 3 * height))  # [N, S, 3 * H]
    _blur(view, maps.blurred, maps.blur_right)
    rows = view.new_empty(n, 3 * height, size)
    rows.mT.copy_(view)  # quicker than to read across
    view = maps.down.sums(rows)  # [N, 3 * S, S]
    _blur(view, maps.blurred, maps.blur_down)
    view = view.view(n, 3, size, size)
    if len(maps.transposed):
        view.index_copy_(0, maps.transposed, view[maps.transposed].mT)
    view = view.view(n, 3, size * size)
    grey = view.mean(2) * maps.grey  # each row's mean is one core's, in the order that the row's length gives
    view = maps.colours.sums(view)
    view += (grey[:, 0] + grey[:, 1] + grey[:, 2])[:, None, None]
    if len(maps.solarised):
        bright = view[maps.solarised]
        view.index_copy_(0, maps.solarised, torch.minimum(bright, 1 - bright))  # 1 - x is the lesser from 0.5 on
    torch.clamp(view.to(out.dtype), 0, 1, out=out.view(view.shape))


def _blur(lines: Tensor, which: Tensor, changes: Bags) -> None:
    """In place: the lines of some images, by what a blur adds to them."""
    if len(which):
        lines.index_add_(0, which, changes.sums(lines))  # quicker than index_copy_ by far


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
    weight = weight / functools.reduce(torch.add, weight.unbind(1))[:, None]
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
    weight = series.exp(-0.5 * (offset / sigma.clamp(min=1e-6)[:, None]) ** 2)
    return weight / functools.reduce(torch.add, weight.unbind(1))[:, None]


def blur_taps(kernel: Tensor, size: int) -> Taps:
    """What a blur adds to each of S lines, with reflected borders.

    Args:
        kernel: ``[N, K]``.
    """
    weight = kernel[:, None].clone()
    weight[..., kernel.shape[1] // 2] -= 1
    return Taps(_reflected(size, kernel.shape[1], kernel.device), weight)


@functools.lru_cache
def _reflected(size: int, num_taps: int, device: torch.device) -> Tensor:
    """int32 ``[S, K]``: the lines under the kernel at each line; kept, as it is asked for with every view."""
    tap = torch.arange(num_taps, dtype=torch.int32, device=device) - num_taps // 2
    line = (torch.arange(size, dtype=torch.int32, device=device)[:, None] + tap).abs()
    return size - 1 - (size - 1 - line).abs()


def colour(drawn: Drawn) -> tuple[Tensor, Tensor]:
    """Brightness, contrast, saturation and hue as one affine map of colour; they commute, so they have no order.

        colour -> brightness (contrast turn(colour) + (1 - contrast) luma of the mean colour)

    where ``turn`` leaves luma alone, multiplies what is not grey by saturation and turns it by hue about the grey axis
    (Haeberli, "Matrix Operations for Image Processing", 1993). torchvision's hue goes through HSV.

    Returns:
        (matrix ``[N, 3, 3]``, grey ``[N, 3]``), float32: colour -> matrix @ colour + grey @ mean colour.
    """
    device = drawn.hue.device
    luma = _LUMA.to(device).expand(3, 3)
    chroma = torch.eye(3, device=device) - luma
    along, turned = (drawn.saturation * part for part in series.cos_sin(drawn.hue * (2 * math.pi)))
    turn = luma + along[:, None, None] * chroma + turned[:, None, None] * _ACROSS.to(device)
    gain = drawn.brightness * drawn.contrast
    return gain[:, None, None] * turn, (drawn.brightness * (1 - drawn.contrast))[:, None] * luma[0]
