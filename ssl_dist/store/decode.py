"""Bytes of one image file -> one uint8 array of the store's size."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

from ssl_dist.errors import Unreadable

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_PIXELS = 64_000_000
MAX_BYTES = 256 << 20  # of a file: that many pixels, uncompressed, with alpha
_ORIENTATION = 0x0112  # the EXIF tag
_EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"})


def refuse_large(num_bytes: int) -> None:
    """Raises Unreadable for a file that is larger than an image of MAX_PIXELS can be."""
    if num_bytes > MAX_BYTES:
        raise Unreadable(f"a file of more than {MAX_BYTES:,} bytes")


def decode(content: bytes, size_px: int | None) -> np.ndarray:
    """Decode and resize one image.

    Args:
        content: a JPEG, PNG, WebP or BMP file, known by its content, of at most MAX_PIXELS pixels and 8 bits a channel.
        size_px: side of the square result: the shorter side is resized to it (bicubic with antialiasing) and the
            centre is cut out. None keeps the image as it is.

    Returns:
        uint8 ``[H, W, 3]``, RGB, turned upright by its EXIF orientation.

    Raises:
        Unreadable: anything else.
    """
    refuse_large(len(content))
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Unreadable(f"{image.width} x {image.height} pixels, the most is {MAX_PIXELS}")
            if image.mode not in _EIGHT_BIT_MODES:
                raise Unreadable(f"pixel format {image.mode} has more than 8 bits a channel")
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except Unreadable:
        raise
    except Exception as error:  # a damaged file raises whatever the decoder trips over
        raise Unreadable(str(error) or type(error).__name__) from None
    return _fitted(upright, size_px)


def is_plain_jpeg(content: bytes, size: tuple[int, int]) -> bool:
    """Is it a JPEG of (width, height), in RGB and upright, so that any reader sees what ``decode`` makes of it?"""
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            return image.mode == "RGB" and image.size == size and image.getexif().get(_ORIENTATION, 1) == 1
    except (OSError, ValueError):
        return False


def resize(image: np.ndarray, size_px: int | None) -> np.ndarray:
    """uint8 ``[H, W, 3]`` to the size that ``decode`` would have given it."""
    return image if size_px is None else _fitted(Image.fromarray(image), size_px)


def _fitted(image: Image.Image, size_px: int | None) -> np.ndarray:
    if size_px is not None and image.size != (size_px, size_px):
        image = ImageOps.fit(image, (size_px, size_px), method=Image.Resampling.BICUBIC)
    return np.asarray(image)


def describe_resize(size_px: int | None) -> str:
    """What ``decode`` did to every image, in words for the manifest."""
    if size_px is None:
        return "none: images kept at their own size"
    return f"shorter side to {size_px} px (bicubic, antialiased), centre {size_px} x {size_px} px cut out"
