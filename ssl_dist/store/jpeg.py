"""JPEG bytes of a store -> pixels: torchvision's decoder, twice as fast as Pillow's. Imports torch."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from torchvision.io import ImageReadMode
from torchvision.io import decode_jpeg as _decode

from ssl_dist.errors import StoreDamaged


def decode_jpeg(content: pa.Buffer) -> np.ndarray:
    """uint8 ``[H, W, 3]``.

    Raises:
        StoreDamaged: it is none, though its checksum holds: the store was not made by this package.
    """
    try:
        image = _decode(torch.frombuffer(content, dtype=torch.uint8), mode=ImageReadMode.RGB)
    except (RuntimeError, ValueError) as error:
        raise StoreDamaged(f"an image of the store cannot be decoded ({error}): build the store again") from None
    return image.permute(1, 2, 0).numpy()
