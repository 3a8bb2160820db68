"""Helpers that render views with parameters that a test sets, instead of random ones."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_dist.augment.draws import ViewParameters
from ssl_dist.augment.operations import render, render_plans


def pictures(n: int, height: int = 32, width: int | None = None) -> Tensor:
    """Return smooth pictures, uint8 [n, height, width, 3], far enough from black and white that no value is clamped."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 3, 6, 6, generator=generator) * 100 + 70
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width or height), mode="bicubic")
    return smooth.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def planes(images: Tensor) -> Tensor:
    """Turn uint8 [N, H, W, 3] into torchvision's layout, float32 [N, 3, H, W] in [0, 1]."""
    return images.permute(0, 3, 1, 2) / 255


def made(images: Tensor, size: int | None = None, **parameters: float | bool) -> Tensor:
    """Render one view of each image, [N, 3, S, S], with only these operations; S is the height unless given."""
    n, height, width, _ = images.shape
    no_operation = {
        "top": 0.0,
        "left": 0.0,
        "height": float(height),
        "width": float(width),
        "flipped": False,
        "quarter_turns": 0.0,
        "brightness": 1.0,
        "contrast": 1.0,
        "saturation": 1.0,
        "hue": 0.0,
        "blur_sigma": 0.0,
        "solarised": False,
    }
    fields = {name: torch.full((n,), value) for name, value in {**no_operation, **parameters}.items()}
    size = size or height
    [plan] = render_plans(ViewParameters(**fields), height, width, size, [n])
    out = torch.empty(n, 3, size, size)
    render((images / 255).permute(0, 2, 3, 1).contiguous(), plan, out)
    return out
