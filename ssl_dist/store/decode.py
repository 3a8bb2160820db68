"""Decode one image file, which nobody has checked, into a uint8 array of the store's image size."""

from __future__ import annotations

import io
import re
import warnings

import numpy as np
from PIL import Image, ImageOps

from ssl_dist.errors import Unreadable

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_PIXELS = 64_000_000
MAX_FILE_BYTES = 256 << 20  # about MAX_PIXELS uncompressed pixels with alpha
MAX_SIDE_PX = 1 << 16
MAX_SCANS = 100  # each scan of a progressive JPEG is a pass over all its blocks; libjpeg itself writes 10
_ORIENTATION = 0x0112  # the EXIF tag
_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd7]")  # a JPEG marker that ends compressed data
_SCAN, _END, _PROGRESSIVE = 0xDA, 0xD9, (0xC2, 0xCA)
_EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"})

# Pillow's warnings are about images that are refused here anyway, or are harmless. They are silenced once for the
# whole process, because warnings.catch_warnings is not safe with threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


def refuse_large(num_bytes: int) -> None:
    """Raise Unreadable for a file that is larger than an image of MAX_PIXELS can be."""
    if num_bytes > MAX_FILE_BYTES:
        raise Unreadable(f"a file of more than {MAX_FILE_BYTES:,} bytes")


def decode(content: bytes, size_px: int | None) -> np.ndarray:
    """Decode and resize one image.

    Args:
        content: a JPEG, PNG, WebP or BMP file of at most MAX_PIXELS pixels; its first bytes tell which, not its name.
            Colour images of 16 bits a channel keep the upper 8 bits. Grey ones are refused: they are often
            measurements that use only a few of the bits.
        size_px: side of the square result: the shorter side is resized to it (bicubic with antialiasing) and the
            centre is cut out. None keeps the image's own size.

    Returns:
        uint8 ``[H, W, 3]``, RGB, turned upright by its EXIF orientation.

    Raises:
        Unreadable: the file is not such an image.
    """
    refuse_large(len(content))
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Unreadable(f"{image.width} x {image.height} pixels, the most is {MAX_PIXELS}")
            if max(image.size) > MAX_SIDE_PX:
                raise Unreadable(f"{image.width} x {image.height} pixels, the most is {MAX_SIDE_PX} a side")
            if image.format == "JPEG" and _num_scans(content) > MAX_SCANS:
                raise Unreadable(f"a progressive JPEG of more than {MAX_SCANS} scans")
            if image.mode not in _EIGHT_BIT_MODES:
                raise Unreadable(f"pixel format {image.mode} has more than 8 bits a channel")
            ImageOps.exif_transpose(image, in_place=True)  # in place: a copy of the largest image takes 256 MB
            upright = image if image.mode == "RGB" else image.convert("RGB")
            return _fit(upright, size_px)
    except Unreadable:
        raise
    except Exception as error:  # damage may make a decoder raise anything
        raise Unreadable(str(error) or type(error).__name__) from None


def _num_scans(content: bytes) -> int:
    """Count the scans of a progressive JPEG; any other JPEG counts as 1.

    The markers are followed one by one, since a search for scan markers would also find those of embedded thumbnails.

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
    """Return whether a file is an upright RGB JPEG of (width, height), which any reader decodes as ``decode`` does."""
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            return image.mode == "RGB" and image.size == size and image.getexif().get(_ORIENTATION, 1) == 1
    except Exception:  # damage may make a decoder raise anything
        return False


def resize(image: np.ndarray, size_px: int | None) -> np.ndarray:
    """Resize pixels, uint8 ``[H, W, 3]``, as ``decode`` does."""
    return image if size_px is None else _fit(Image.fromarray(image), size_px)


def _fit(image: Image.Image, size_px: int | None) -> np.ndarray:
    if size_px is not None and image.size != (size_px, size_px):
        image = ImageOps.fit(image, (size_px, size_px), method=Image.Resampling.BICUBIC)
    return np.asarray(image)


def describe_resize(size_px: int | None) -> str:
    """Describe the resizing that ``decode`` does, for the manifest."""
    if size_px is None:
        return "none: images kept at their own size"
    return f"shorter side to {size_px} px (bicubic, antialiased), centre {size_px} x {size_px} px cut out"
