"""Operations of a view with given parameters: crop, resize, flip, rotation, blur, colours, solarising.

Crop, resize, flip and blur are linear and separable: a line of the view is a weighted sum of a few lines of the image,
its *taps*. Brightness, contrast, saturation, hue and grey are one affine map of colour.

A view depends on its own image alone, to the last bit: its sums run in one order, whatever else is rendered. Matrix
products of a library do not promise that, because the number of images may choose their code.

Shapes: N images, H x W stored pixels, S x S of the output, K taps of a line.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_dist.augment import series
from ssl_dist.augment.draws import ViewParameters

GREY = (0.299, 0.587, 0.114)  # ITU-R 601 luma
_LUMA = torch.tensor(GREY)
_TO_YIQ = torch.tensor([GREY, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)])  # NTSC's colours
_QUARTER_TURN = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])  # of the plane of I and Q
_HUE_QUARTER_TURN = torch.linalg.inv(_TO_YIQ) @ _QUARTER_TURN @ _TO_YIQ


class Taps(NamedTuple):
    """S weighted sums, each of K lines of an image.

    Attributes:
        lines: line numbers, int32 ``[N, S, K]``, or ``[S, K]`` for all images.
        weight: float32 ``[N, S, K]``, or ``[N, 1, K]`` for all sums. The weights of a sum add up to 1, or to 0 where
            the sum is the change that a blur makes.
    """

    lines: Tensor
    weight: Tensor


class LineSums(NamedTuple):
    """Taps in the layout of torch.embedding_bag, which sums weighted rows of a matrix.

    An image has C sets of lines, e.g. one for each channel; the taps are the same for all sets.

    Attributes:
        lines: int32 ``[N, C * S, K]``, numbers among all lines of the images of a chunk.
        weight: float32 ``[N, C * S, K]``.
    """

    lines: Tensor
    weight: Tensor

    @classmethod
    def of(cls, taps: Taps, image_numbers: Tensor, num_sets: int, num_lines: int) -> LineSums:
        """Lay out taps of images with ``num_sets`` sets of ``num_lines`` lines.

        Args:
            image_numbers: int64 ``[N]``, each image's number in its chunk.
        """
        sets = torch.arange(num_sets, device=image_numbers.device)
        first = ((image_numbers[:, None] * num_sets + sets) * num_lines).int()  # [N, C]
        lines = taps.lines.unsqueeze(-3) + first[:, :, None, None]  # [N, C, S, K]
        return cls(lines.flatten(1, 2), taps.weight.unsqueeze(1).expand(lines.shape).flatten(1, 2).contiguous())

    def split(self, counts: list[int]) -> list[LineSums]:
        """Split into parts of these numbers of images."""
        return [LineSums(*both) for both in zip(self.lines.split(counts), self.weight.split(counts), strict=True)]

    def apply(self, lines: Tensor) -> Tensor:
        """Sum lines of R values, float32 ``[.., R]`` and contiguous, to ``[N, C * S, R]``."""
        num_images, num_sums, num_taps = self.lines.shape
        sums = torch.embedding_bag(
            lines.view(-1, lines.shape[-1]),
            self.lines.view(-1),
            _first_taps(num_images * num_sums, num_taps, lines.device),
            mode=0,  # a sum; calling torch.nn.functional's embedding_bag takes longer
            per_sample_weights=self.weight.view(-1),
        )[0]
        return sums.view(num_images, num_sums, lines.shape[-1])


def _first_taps(num_sums: int, num_taps: int, device: torch.device) -> Tensor:
    """Return int32 ``[num_sums]``, the number of each sum's first tap."""
    return _multiples(1 << num_sums.bit_length(), num_taps, device)[:num_sums]


@functools.lru_cache  # every chunk of images asks for it
def _multiples(count: int, factor: int, device: torch.device) -> Tensor:
    """Return the first ``count`` multiples of ``factor``, int32, from 0 on."""
    return torch.arange(0, count * factor, factor, dtype=torch.int32, device=device)


class RenderPlan(NamedTuple):
    """Operations of one view on the N images of a chunk.

    Attributes:
        right: makes the view's columns as weighted sums of the image's columns, for all channels at once: crop,
            resize, flip and a rotation's flips, along x.
        down: makes its rows likewise, along y, for each channel.
        blurred: int64 ``[B]``, numbers of the images that are blurred.
        blur_right, blur_down: the change that a blur makes to columns and rows of these.
        transposed: int64 ``[T]``, numbers of the images that are transposed, which completes a rotation.
        colours: each channel as a weighted sum of the three.
        grey: float32 ``[N, 3]``, the share of each channel's mean that is added to all channels.
        solarised: int64 ``[Z]``, numbers of the images that are solarised.
    """

    right: LineSums
    down: LineSums
    blurred: Tensor
    blur_right: LineSums
    blur_down: LineSums
    transposed: Tensor
    colours: LineSums
    grey: Tensor
    solarised: Tensor


def render_plans(
    parameters: ViewParameters, height: int, width: int, size: int, chunk_sizes: list[int]
) -> list[RenderPlan]:
    """Turn the parameters of one view into a plan for each chunk of images.

    Args:
        parameters: of ``sum(chunk_sizes)`` images.
        height, width: of the stored images, pixels.
        size: S, of the view.
        chunk_sizes: number of images of each chunk.
    """
    # A counterclockwise rotation by one quarter is a mirror, then a transpose; by two, both flips; by three, an upside-
    # down flip, then a transpose.
    quarters, blurred = parameters.quarter_turns, parameters.blur_sigma > 0
    mirrored = parameters.flipped ^ (quarters == 1) ^ (quarters == 2)
    upside_down = (quarters == 2) | (quarters == 3)
    device = quarters.device
    sizes = torch.tensor(chunk_sizes, device=device)
    chunk = torch.arange(len(chunk_sizes), device=device).repeat_interleave(sizes)  # [N], each image's chunk
    number = torch.arange(len(chunk), device=device) - (sizes.cumsum(0) - sizes)[chunk]  # [N], its number in the chunk

    def selected(mask: Tensor) -> list[Tensor]:
        """Return, for each chunk, the numbers of the images that the mask selects."""
        return list(number[mask].split(chunk[mask].bincount(minlength=len(chunk_sizes)).tolist()))

    blurred_images = selected(blurred)
    num_blurred = [len(numbers) for numbers in blurred_images]
    blur = blur_taps(blur_kernels(parameters.blur_sigma[blurred], size), size)
    columns = resize_taps(parameters.left, parameters.width, mirrored, width, size)
    rows = resize_taps(parameters.top, parameters.height, upside_down, height, size)
    matrix, grey = colour_maps(parameters)
    channels = torch.arange(3, dtype=torch.int32, device=device).expand(3, 3)
    fields = (
        LineSums.of(columns, number, 1, width).split(chunk_sizes),
        LineSums.of(rows, number, 3, height).split(chunk_sizes),
        blurred_images,
        LineSums.of(blur, number[blurred], 1, size).split(num_blurred),
        LineSums.of(blur, number[blurred], 3, size).split(num_blurred),
        selected(quarters % 2 == 1),
        LineSums.of(Taps(channels, matrix), number, 1, 3).split(chunk_sizes),
        grey.split(chunk_sizes),
        selected(parameters.solarised),
    )
    return [RenderPlan(*of_chunk) for of_chunk in zip(*fields, strict=True)]


def render(columns: Tensor, plan: RenderPlan, out: Tensor) -> None:
    """Render one view of a chunk of images.

    Args:
        columns: float32 ``[N, W, 3, H]`` in [0, 1], the images, contiguous.
        plan: the operations on each image.
        out: float32 or bfloat16 ``[N, 3, S, S]``, contiguous; the view is written here, in [0, 1].
    """
    n, width, _, height = columns.shape
    size = out.shape[-1]
    view = plan.right.apply(columns.view(n * width, 3 * height))  # [N, S, 3 * H]
    _blur(view, plan.blurred, plan.blur_right)
    rows = view.new_empty(n, 3 * height, size)
    rows.mT.copy_(view)  # quicker than sums over a transposed view
    view = plan.down.apply(rows)  # [N, 3 * S, S]
    _blur(view, plan.blurred, plan.blur_down)
    view = view.view(n, 3, size, size)
    if len(plan.transposed):
        view.index_copy_(0, plan.transposed, view[plan.transposed].mT)
    view = view.view(n, 3, size * size)
    grey = _means(view) * plan.grey
    view = plan.colours.apply(view)
    view += (grey[:, 0] + grey[:, 1] + grey[:, 2])[:, None, None]
    if len(plan.solarised):
        bright = view[plan.solarised]
        view.index_copy_(0, plan.solarised, torch.minimum(bright, 1 - bright))  # from 0.5 on, 1 - x is the smaller
    torch.clamp(view.to(out.dtype), 0, 1, out=out.view(view.shape))


def _means(rows: Tensor) -> Tensor:
    """Return the means of the last dimension, whose bits do not depend on the number of rows.

    On a CPU one core computes a row's mean, in an order that the row's length alone sets. CUDA's kernel chooses the
    order by the number of rows too.
    """
    return rows.mean(-1) if rows.device.type == "cpu" else sum_by_halves(rows) / rows.shape[-1]


def sum_by_halves(rows: Tensor) -> Tensor:
    """Sum the last dimension in one order: add its second half to the first until one element is left."""
    while (length := rows.shape[-1]) > 1:
        half = length // 2
        summed = rows[..., :half] + rows[..., half : 2 * half]
        if length % 2:
            summed[..., 0] += rows[..., -1]
        rows = summed
    return rows[..., 0]


def _blur(lines: Tensor, blurred: Tensor, changes: LineSums) -> None:
    """Add the blur's changes to the lines of the blurred images, in place."""
    if len(blurred):
        lines.index_add_(0, blurred, changes.apply(lines))  # much quicker than index_copy_


def resize_taps(start: Tensor, length: Tensor, reverse: Tensor, size: int, out: int) -> Taps:
    """Resize the pixels [start, start + length) of a line of ``size`` pixels to ``out`` pixels, with antialiasing.

    Args:
        start, length: float32 ``[N]``, whole numbers.
        reverse: bool ``[N]``, whether the result runs from the last pixel to the first.
        size, out: pixels of the line and of the result.
    """
    target = torch.arange(out, device=start.device) + 0.5
    target = torch.where(reverse[:, None], out - target, target)  # [N, S]
    scale = (length / out)[:, None]
    reach = scale.clamp(min=1)[
        :, None
    ]  # half the base of the triangular filter, which is wider where the image shrinks
    centre = (target * scale)[:, None]  # [N, 1, S], measured from the crop's edge
    tap = torch.arange(math.ceil(2 * max(1, size / out)), device=start.device)
    pixel = (centre - reach + 0.5).floor() + tap[:, None]  # [N, K, S]
    weight = (1 - (pixel + 0.5 - centre).abs() / reach).clamp_(min=0)
    inside = pixel.clamp(min=0).minimum(length[:, None, None] - 1)
    weight = torch.where(pixel == inside, weight, 0.0)  # pixels outside the crop have no weight
    weight = weight / functools.reduce(torch.add, weight.unbind(1))[:, None]
    return Taps((inside + start[:, None, None]).int().mT.contiguous(), weight.mT.contiguous())


def blur_kernels(sigma: Tensor, size: int) -> Tensor:
    """Return the weights of a Gaussian blur.

    A kernel has S // 10 taps, made odd (SimCLR, appendix A), at least 3; less if it would reach beyond both borders.

    Args:
        sigma: float32 ``[N]``, pixels; 0: no blur.
        size: S, pixels of a line.

    Returns:
        float32 ``[N, K]``; the weights of an image sum to 1.
    """
    radius = min(max(1, size // 10 // 2), size - 1)
    offset = torch.arange(-radius, radius + 1, device=sigma.device)
    weight = series.exp(-0.5 * (offset / sigma.clamp(min=1e-6)[:, None]) ** 2)
    return weight / functools.reduce(torch.add, weight.unbind(1))[:, None]


def blur_taps(kernel: Tensor, size: int) -> Taps:
    """Return the change that a blur makes to each of S lines; borders are reflected.

    Args:
        kernel: ``[N, K]``.
        size: S.
    """
    weight = kernel[:, None].clone()
    weight[..., kernel.shape[1] // 2] -= 1
    return Taps(_reflected(size, kernel.shape[1], kernel.device), weight)


@functools.lru_cache  # every view asks for it
def _reflected(size: int, num_taps: int, device: torch.device) -> Tensor:
    """Return int32 ``[S, K]``, the numbers of the lines under the kernel at each line."""
    tap = torch.arange(num_taps, dtype=torch.int32, device=device) - num_taps // 2
    line = (torch.arange(size, dtype=torch.int32, device=device)[:, None] + tap).abs()
    return size - 1 - (size - 1 - line).abs()


def colour_maps(parameters: ViewParameters) -> tuple[Tensor, Tensor]:
    """Combine brightness, contrast, saturation and hue into one affine map of colour; they commute.

        colour -> brightness (contrast turn(colour) + (1 - contrast) luma of the mean colour)

    ``turn`` keeps luma; it multiplies the difference from grey by saturation and rotates it by hue about the grey axis
    (Haeberli, "Matrix Operations for Image Processing", 1993). torchvision's hue goes through HSV instead.

    Returns:
        (matrix ``[N, 3, 3]``, grey ``[N, 3]``), float32, such that colour -> matrix @ colour + grey @ mean colour.
    """
    device = parameters.hue.device
    luma = _LUMA.to(device).expand(3, 3)
    chroma = torch.eye(3, device=device) - luma
    along, turned = (parameters.saturation * part for part in series.cos_sin(parameters.hue * (2 * math.pi)))
    turn = luma + along[:, None, None] * chroma + turned[:, None, None] * _HUE_QUARTER_TURN.to(device)
    gain = parameters.brightness * parameters.contrast
    return gain[:, None, None] * turn, (parameters.brightness * (1 - parameters.contrast))[:, None] * luma[0]
