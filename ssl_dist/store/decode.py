"""Bytes of one image file -> one uint8 array of the store's size."""

from __future__ import annotations

import io
import re
import warnings

import numpy as np
from PIL import Image, ImageOps

from ssl_dist.errors import Unreadable

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_PIXELS = 64_000_000
MAX_BYTES = 256 << 20  # of a file: that many pixels, uncompressed, with alpha
MAX_PX = 1 << 16  # a side
MAX_SCANS = 100  # of a progressive JPEG, each a pass over all its blocks; libjpeg's own have 10
_ORIENTATION = 0x0112  # the EXIF tag
_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd7]")  # in a JPEG's compressed data, what ends it
_SCAN, _END, _PROGRESSIVE = 0xDA, 0xD9, (0xC2, 0xCA)
_EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"})

# Pillow warns of what is refused here, or of no consequence; once for the process, as what is set for a while
# (warnings.catch_warnings) holds for other threads too, and may stay
warnings.filterwarnings("ignore", module=r"PIL\.")


def refuse_large(num_bytes: int) -> None:
    """Raises Unreadable for a file that is larger than an image of MAX_PIXELS can be."""
    if num_bytes > MAX_BYTES:
        raise Unreadable(f"a file of more than {MAX_BYTES:,} bytes")


def decode(content: bytes, size_px: int | None) -> np.ndarray:
    """Decode and resize one image.

    Args:
        content: a JPEG, PNG, WebP or BMP file, known by its content, of at most MAX_PIXELS pixels. Of 16 bits a channel
            colour is taken by its upper 8; grey is refused, as it is often a measurement that uses a few of them.
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
            if max(image.size) > MAX_PX:
                raise Unreadable(f"{image.width} x {image.height} pixels, the most is {MAX_PX} a side")
            if image.format == "JPEG" and _num_scans(content) > MAX_SCANS:
                raise Unreadable(f"a progressive JPEG of more than {MAX_SCANS} scans")
            if image.mode not in _EIGHT_BIT_MODES:
                raise Unreadable(f"pixel format {image.mode} has more than 8 bits a channel")
            ImageOps.exif_transpose(image, in_place=True)  # each copy of the largest image takes 256 MB
            upright = image if image.mode == "RGB" else image.convert("RGB")
            return _fitted(upright, size_px)
    except Unreadable:
        raise
    except Exception as error:  # a damaged file raises whatever the decoder trips over
        raise Unreadable(str(error) or type(error).__name__) from None


def _num_scans(content: bytes) -> int:
    """Of a progressive JPEG (1 of another): markers are walked over, as pictures within pictures have their own.

    Source: ITU-T T.81, B.1 and B.2.
    """
    scans, position, progressive = 0, 2, False
    while marker := _MARKER.search(content, position):
        kind = content[marker.start() + 1]
        if kind == _END or (kind == _SCAN and not progressive):
            break
        scans, progressive = scans + (kind == _SCAN), progressive or kind in _PROGRESSIVE
        position = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2], "big")
    return scans if progressive else 1


def is_plain_jpeg(content: bytes, size: tuple[int, int]) -> bool:
    """Is it a JPEG of (width, height), in RGB and upright, so that any reader sees what ``decode`` makes of it?"""
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            return image.mode == "RGB" and image.size == size and image.getexif().get(_ORIENTATION, 1) == 1
    except Exception:  # as in ``decode``
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
