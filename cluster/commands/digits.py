"""The demo's images: scikit-learn's 1,797 handwritten digits as class folders of PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

_SIZE_PX = 16  # twice their own 8, so that crops have something to choose from
_EVERY = 5  # each fifth digit is for testing


def write_folders(folder: Path) -> None:
    """``folder/train/<digit>/<number>.png`` and ``folder/test/...``."""
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        split = "train" if number % _EVERY else "test"
        image = Image.fromarray((pixels * (255 / 16)).astype(np.uint8))
        target = folder / split / str(label) / f"{number:04d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        image.resize((_SIZE_PX, _SIZE_PX), Image.Resampling.BICUBIC).save(target)
