"""SimCLR's two views as others make them, beside ours: each with the images in the form that it takes best.

All have the crop of (0.08, 1) of the area, the flip, the jitter of probability 0.8, the grey of 0.2 and, where asked
for, the blur of 0.5, and none normalises. What differs: lightly's blur is Pillow's (box filters, of bytes); torchvision
and lightly work on bytes and jitter with hue through HSV, clamped after each step; kornia's crop is a grid sample
without antialiasing, which no crop needs that is enlarged.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from ssl_dist import augment


class Task(NamedTuple):
    """Views of S x S pixels of stored images of as many: jitter times ``strength``, with or without blur; ``images`` in
    a call that makes a batch at once."""

    images: int
    size: int
    strength: float
    blur: bool

    @property
    def recipe(self) -> str:
        return "simclr" if self.blur else "simclr-small"

    @property
    def jitter(self) -> list[float]:
        """Brightness, contrast, saturation and hue, as torchvision's ColorJitter takes them."""
        return [0.8 * self.strength] * 3 + [0.2 * self.strength]

    @property
    def taps(self) -> int:
        """Of the blur's kernel."""
        return 2 * max(1, self.size // 10 // 2) + 1


Views = Callable[[], object]  # makes two views of every image
Start = Callable[[Task, np.ndarray], Views]  # gets uint8 [N, S, S, 3]


class Contender(NamedTuple):
    """``batched``: whether it makes views of all images at once, or of one at a time."""

    start: Start
    batched: bool


def _ours(dtype: torch.dtype) -> Start:
    def start(task: Task, images: np.ndarray) -> Views:
        pixels, ids = torch.from_numpy(images), torch.arange(len(images))
        return lambda: augment.views(pixels, ids, seed=0, epoch=0, recipe=task.recipe, dtype=dtype)

    return start


def torchvision(task: Task, images: np.ndarray) -> Views:
    """One uint8 image [3, S, S] at a time; float32 at the end."""
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(task.size, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(*task.jitter)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            *([v2.RandomApply([v2.GaussianBlur(task.taps, (0.1, 2.0))], p=0.5)] if task.blur else []),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    tensors = list(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous())
    return lambda: [torch.stack([transform(image) for image in tensors]) for _ in range(2)]


def lightly(task: Task, images: np.ndarray) -> Views:
    """One decoded PIL image at a time, and the batch that its collate function makes."""
    os.environ.setdefault("LIGHTLY_DID_VERSION_CHECK", "True")
    from lightly.transforms import SimCLRTransform

    transform = SimCLRTransform(
        task.size, cj_strength=task.strength, gaussian_blur=0.5 if task.blur else 0.0, normalize=None
    )
    pictures = [Image.fromarray(image) for image in images]
    return lambda: [torch.stack(view) for view in zip(*(transform(picture) for picture in pictures), strict=True)]


def kornia(task: Task, images: np.ndarray) -> Views:
    """float32 [N, 3, S, S] all at once; of its containers, croppings and jitters the quickest at 32 px."""
    from kornia import augmentation

    transform = augmentation.AugmentationSequential(
        augmentation.RandomResizedCrop((task.size, task.size), cropping_mode="resample"),
        augmentation.RandomHorizontalFlip(p=0.5),
        augmentation.ColorJitter(*task.jitter, p=0.8),
        augmentation.RandomGrayscale(p=0.2),
        *([augmentation.RandomGaussianBlur((task.taps, task.taps), (0.1, 2.0), p=0.5)] if task.blur else []),
    )
    pixels: Tensor = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255

    def views() -> list[Tensor]:
        with torch.no_grad():
            return [transform(pixels) for _ in range(2)]

    return views


CONTENDERS: dict[str, Contender] = {
    "ours, float32": Contender(_ours(torch.float32), batched=True),
    "ours, bfloat16": Contender(_ours(torch.bfloat16), batched=True),
    "kornia": Contender(kornia, batched=True),
    "torchvision v2": Contender(torchvision, batched=False),
    "lightly": Contender(lightly, batched=False),
}
