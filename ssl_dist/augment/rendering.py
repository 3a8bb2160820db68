"""Make the views of a batch of images: chunk by chunk, ``draws`` samples parameters and ``operations`` changes pixels.

Shapes: N images, V views, H x W stored pixels, S output pixels a side.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor

from ssl_dist.augment.draws import draw_parameters
from ssl_dist.augment.operations import RenderPlan, render, render_plans
from ssl_dist.augment.policies import POLICIES, Policy
from ssl_dist.errors import ConfigError
from ssl_dist.hashing import fold

# Images are rendered in chunks: as many as a CPU's caches hold, and on another device as many as take little memory.
_CHUNK_BYTES_PER_CORE = 3 << 18
_CHUNK_BYTES_ON_DEVICE = 1 << 28
_CHUNKS_PER_DRAW = 32  # parameters of many chunks are drawn at once
_LARGE_PAGE_BYTES = 4 << 20  # NumPy asks for large pages from this size on


def views(
    images: Tensor,
    ids: Tensor,
    *,
    seed: int,
    epoch: int | Tensor,
    recipe: str | Policy,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Make random views of every image, on the device that holds the images.

    Args:
        images: uint8 ``[N, H, W, 3]``.
        ids: int64 ``[N]``, the images' sample ids.
        seed: the run's seed.
        epoch: one epoch for all images, or int64 ``[N]``, the epoch of each.
        recipe: the policy's name (a key of POLICIES) or a Policy; all its views have one output size.
        dtype: float32 or bfloat16; all is computed in float32, and the result is rounded once.

    Returns:
        ``[V, N, 3, S, S]`` in [0, 1].

    Raises:
        ConfigError: there is no such policy, or its views differ in size.
    """
    by_size = crops(images, ids, seed=seed, epoch=epoch, recipe=recipe, dtype=dtype)
    if len(by_size) != 1:
        raise ConfigError(f"views of different sizes {sorted({part.shape[-1] for part in by_size})} in one recipe")
    return by_size[0]


def crops(
    images: Tensor,
    ids: Tensor,
    *,
    seed: int,
    epoch: int | Tensor,
    recipe: str | Policy,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, ...]:
    """Make views whose sizes may differ: ``[V_i, N, 3, S_i, S_i]`` for each run of views of one size.

    Arguments are those of ``views``.
    """
    if isinstance(recipe, str):
        if recipe not in POLICIES:
            raise ConfigError(f"augment recipe {recipe!r}: it is one of {', '.join(POLICIES)}")
        recipe = POLICIES[recipe]
    images, ids = torch.as_tensor(images), torch.as_tensor(ids)
    height = images.shape[1]
    epochs = torch.as_tensor(epoch, device=images.device).expand(len(images))
    state = fold(fold(fold(torch.zeros_like(ids), seed), epochs), ids)
    by_size = [
        _empty((len(list(same_size)), len(images), 3, size, size), dtype, images.device)
        for size, same_size in itertools.groupby(view.size_px or height for view in recipe)
    ]
    outs = [out for part in by_size for out in part]
    # inference mode: of many small operations each is quicker without autograd; autocast would round pixels to bfloat16
    with torch.inference_mode(), torch.autocast(images.device.type, enabled=False):
        chunk = _chunk_size(images)
        for first in range(0, len(images), _CHUNKS_PER_DRAW * chunk):
            rows = slice(first, first + _CHUNKS_PER_DRAW * chunk)
            _render(images[rows], state[rows], recipe, chunk, [out[rows] for out in outs])
    return tuple(by_size)


def _render(images: Tensor, state: Tensor, policy: Policy, chunk: int, outs: list[Tensor]) -> None:
    """Render all views of these images into ``outs``, ``chunk`` images at a time."""
    chunks = images.split(chunk)
    plans = _plans(policy, state, images.shape[1:3], [len(part) for part in chunks])
    for number, part in enumerate(chunks):
        across = part.permute(0, 2, 3, 1)  # [N, W, 3, H]
        columns = torch.empty(across.shape, dtype=torch.float32, device=images.device).copy_(across).div_(255)
        for view_plans, out in zip(plans, outs, strict=True):
            render(columns, view_plans[number], out[number * chunk :][: len(part)])


def _plans(policy: Policy, state: Tensor, shape: torch.Size, chunk_sizes: list[int]) -> list[list[RenderPlan]]:
    """Plan each view of each chunk; equal views in a row are drawn at once."""
    (height, width), plans = shape, list[list[RenderPlan]]()
    view_numbers = torch.arange(len(policy), device=state.device)
    states = fold(state, view_numbers[:, None])  # [V, N]
    for view, equal_views in itertools.groupby(policy):
        count = len(list(equal_views))
        parameters = draw_parameters(states[len(plans) : len(plans) + count].flatten(), view, height, width)
        planned = iter(render_plans(parameters, height, width, view.size_px or height, chunk_sizes * count))
        plans += [list(itertools.islice(planned, len(chunk_sizes))) for _ in range(count)]
    return plans


def _chunk_size(images: Tensor) -> int:
    """Return how many images are rendered at once."""
    image_bytes = max(1, images[:1].numel() * 4)
    if images.device.type != "cpu":
        return max(1, _CHUNK_BYTES_ON_DEVICE // image_bytes)
    return max(1, _CHUNK_BYTES_PER_CORE // image_bytes) * torch.get_num_threads()


def _empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Allocate the result. On CPUs NumPy allocates: it gets large pages from Linux, at a third of torch's cost."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < _LARGE_PAGE_BYTES:
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(size, dtype=np.uint8)).view(dtype).view(shape)
