"""SimCLR's two views as other libraries make them, with the operations and probabilities of our policies.

Up to 32 px the policy is ``simclr-small`` (half the colour jitter, no blur), above it ``simclr``. No view is
normalised. The libraries differ from ours: torchvision and lightly work on bytes, jitter the hue through HSV and clamp
after each step; lightly blurs by Pillow's box filters; kornia crops by a grid sample without antialiasing (a crop that
is enlarged needs none).
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable
from typing import Any

from torch import Tensor

SMALL_PX = 32


def policy_name(size_px: int) -> str:
    """Return the name of our augmentation policy for images of this size."""
    return "simclr-small" if size_px <= SMALL_PX else "simclr"


def _strength(size_px: int) -> float:
    return 0.5 if size_px <= SMALL_PX else 1.0


def _blur_taps(size_px: int) -> int:
    return max(1, size_px // 10 // 2) * 2 + 1


def torchvision(size_px: int) -> Callable[[Any], tuple[Tensor, Tensor]]:
    """Return torchvision's transforms.v2: a PIL image (faster than a uint8 tensor) -> two views, float32 [3, S, S]."""
    import torch
    from torchvision.transforms import v2

    s = _strength(size_px)
    operations: list[Any] = [
        v2.RandomResizedCrop(size_px, scale=(0.08, 1.0), antialias=True),
        v2.RandomHorizontalFlip(0.5),
        v2.RandomApply([v2.ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s)], 0.8),
        v2.RandomGrayscale(0.2),
    ]
    if size_px > SMALL_PX:
        operations.append(v2.RandomApply([v2.GaussianBlur(_blur_taps(size_px), (0.1, 2.0))], 0.5))
    view = v2.Compose([*operations, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    return lambda image: (view(image), view(image))


def lightly(size_px: int) -> Callable[[Any], list[Tensor]]:
    """Return lightly's SimCLRTransform: a PIL image -> two views, float32 [3, S, S]."""
    blur_p = 0.5 if size_px > SMALL_PX else 0.0
    made: Callable[[Any], list[Tensor]] = _module("lightly").SimCLRTransform(
        input_size=size_px, cj_strength=_strength(size_px), gaussian_blur=blur_p, normalize=None
    )
    return made


def kornia(size_px: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return kornia's views: uint8 [N, 3, H, W] or [N, H, W, 3] -> two of float32 [N, 3, S, S].

    Each image has its own parameters. kornia has two ways to crop and two colour jitters; the ones taken here are the
    faster ones and nearer to torchvision's.
    """
    import torch
    from kornia import augmentation as k

    s = _strength(size_px)
    operations: list[Any] = [
        k.RandomResizedCrop((size_px, size_px), scale=(0.08, 1.0), cropping_mode="resample"),
        k.RandomHorizontalFlip(p=0.5),
        k.ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s, p=0.8),
        k.RandomGrayscale(p=0.2),
    ]
    if size_px > SMALL_PX:
        taps = _blur_taps(size_px)
        operations.append(k.RandomGaussianBlur((taps, taps), (0.1, 2.0), p=0.5))
    view = torch.nn.Sequential(*operations)

    def views(images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            scaled = (images if images.shape[1] == 3 else images.permute(0, 3, 1, 2)) / 255
            return view(scaled), view(scaled)

    return views


PER_IMAGE = {"torchvision": torchvision, "lightly": lightly}
_MODULES = {
    "torchvision": "torchvision.transforms.v2",
    "kornia": "kornia.augmentation",
    "lightly": "lightly.transforms",
}


def installed(views: list[str]) -> list[str]:
    """Import what ``views`` need; return those that can be made here."""
    found = []
    for name in views:
        with contextlib.suppress(ImportError):
            _module(name)
            found.append(name)
    return found


def _module(views: str) -> Any:
    """Import and return the module that makes these views; ours need none of their own, so this module stands in."""
    os.environ.setdefault("LIGHTLY_DID_VERSION_CHECK", "True")  # else its import asks a server for news
    return importlib.import_module(_MODULES.get(views, __name__))
