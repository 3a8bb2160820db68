"""Decode one image file, which nobody has checked, into a uint8 array of the store's image size."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import BmpImagePlugin, Image, ImageFile, ImageOps, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from ssl_dist.errors import ConfigError, Unreadable
from ssl_dist.store import image_files
from ssl_dist.store.image_files import BMP, DIB, JPEG, PNG, WEBP

MAX_PIXELS = 64_000_000
MAX_REDUCED_PIXELS = 4 * MAX_PIXELS  # of a JPEG of which only every second, fourth or eighth row and column is decoded
MAX_FILE_BYTES = 256 << 20  # about MAX_PIXELS uncompressed pixels with alpha
MAX_SIDE_PX = 1 << 16
MAX_SCANS = 100  # each scan of a progressive JPEG is a pass over all its blocks; libjpeg itself writes 10
ALPHA, DROP, MIXED = "white", "drop", "mixed"
ALPHA_PATTERN = r"^(white|black|drop|mixed|#[0-9a-f]{6})$"
_COLOURS = {"white": "#ffffff", "black": "#000000", MIXED: "#ffffff"}

_EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"})
_GREY_LEVELS = {"L;2": 4, "L;4": 16}  # of a PNG's samples, which Pillow spreads over 0 to 255
# the classes themselves: Image.open has a limit of its own, and quotes an object of ours in its message
_OPENERS: dict[str, type[ImageFile.ImageFile]] = {
    JPEG: JpegImagePlugin.JpegImageFile,
    PNG: PngImagePlugin.PngImageFile,
    WEBP: WebPImagePlugin.WebPImageFile,
    BMP: BmpImagePlugin.BmpImageFile,
    DIB: BmpImagePlugin.DibImageFile,
}
_STRIP_PX = 256
_BEHIND = ((b"\0" * 8, "black"), (b"\x55" * 8, "white"), (b"\xaa" * 8, "black"), (b"\xfe" * 8, "white"))
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow's warnings are about images that are refused here anyway, or are harmless. They are silenced once for the
# whole process, because warnings.catch_warnings is not safe with threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


def refuse_large(num_bytes: int) -> None:
    """Raise Unreadable for a file that is larger than an image of MAX_PIXELS can be."""
    if num_bytes > MAX_FILE_BYTES:
        raise Unreadable(f"a file of more than {MAX_FILE_BYTES:,} bytes")


def parse_alpha(alpha: str) -> str:
    """Return what is done with transparency, as the manifest says it: "white", "black", "drop" or "#rrggbb".

    Raises:
        ConfigError: it is none of these.
    """
    named = {"#ffffff": "white", "#000000": "black"}.get(alpha.lower(), alpha.lower())
    if named == MIXED or not re.fullmatch(ALPHA_PATTERN, named):
        raise ConfigError(f"alpha {alpha!r}: it is white, black, a colour as #rrggbb, or drop")
    return named


def decode(content: bytes, size_px: int | None, alpha: str | None = ALPHA) -> np.ndarray:
    """Decode and resize one image.

    Args:
        content: a JPEG, PNG, WebP or BMP file of at most MAX_PIXELS pixels; its first bytes tell which, not its name.
            Colour images of 16 bits a channel keep the upper 8 bits. Grey ones are refused: they are often
            measurements that use only a few of the bits. A JPEG that is read in one pass may have MAX_REDUCED_PIXELS
            if it is resized to less than half: it is decoded at 1/2, 1/4 or 1/8 of its size.
        size_px: side of the square result: the shorter side is resized to it (bicubic with antialiasing) and the
            centre is cut out. None keeps the image's own size.
        alpha: the ground that transparent pixels are composited onto before the image is resized, "white", "black" or
            "#rrggbb"; each channel is ``(a * foreground + (255 - a) * ground) / 255``, rounded. "drop" and None, as
            old stores have it, keep the colour under the transparency. "mixed" is white.

    Returns:
        uint8 ``[H, W, 3]``, RGB, turned upright by its EXIF orientation.

    Raises:
        Unreadable: the file is not such an image. Files with the same fault have the same text up to its first colon.
    """
    refuse_large(len(content))
    kind = image_files.format_of(content)
    if kind not in _OPENERS:
        raise Unreadable(_describe_unread(content, kind))
    try:
        return _fit(_flatten(_read_upright(content, kind, size_px), kind, alpha), size_px)
    except Unreadable:
        raise
    except Image.DecompressionBombError:
        raise Unreadable(f"more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # damage may make a decoder raise anything
        raise Unreadable(f"{kind} that cannot be decoded: {error or type(error).__name__}") from None


def _describe_unread(content: bytes, kind: str | None) -> str:
    if not content:
        return "an empty file"
    if kind is None:
        return "a file that does not begin as an image does"
    return f"{kind}, not an image" if kind == image_files.WEB_PAGE else f"{kind}, a format that is not read yet"


def _read_upright(content: bytes, kind: str, size_px: int | None) -> Image.Image:
    parts = image_files.part(content)
    image = _open(parts, kind, size_px)
    try:
        image.load()
    except OSError:
        if kind != JPEG or (whole := _load_without_end(parts, size_px)) is None:
            raise
        image = whole
    return _turned(image, parts.exif or image.info.get("exif", b""), parts.xmp or image.info.get("xmp", b""))


def _turned(image: Image.Image, exif: bytes, xmp: bytes) -> Image.Image:
    turn = _TURNS.get(image_files.read_orientation(exif, xmp))
    return image if turn is None else image.transpose(turn)


def from_picture(image: Image.Image, size_px: int | None, alpha: str | None = ALPHA) -> np.ndarray:
    """Turn a picture that Pillow has opened or made into pixels, as ``decode`` does with its file.

    Raises:
        Unreadable: it has more than 8 bits a channel.
    """
    if image.mode not in _EIGHT_BIT_MODES:
        raise Unreadable(f"more than 8 bits a channel: pixel format {image.mode}")
    upright = _turned(image, image.info.get("exif", b""), image.info.get("xmp", b""))
    return _fit(_flatten(upright, "a picture", alpha), size_px)


def _open(parts: image_files.Parts, kind: str, size_px: int | None) -> ImageFile.ImageFile:
    image = _OPENERS[kind](io.BytesIO(parts.picture))
    _prepare(image, parts.scans, size_px)
    return image


def _load_without_end(parts: image_files.Parts, size_px: int | None) -> ImageFile.ImageFile | None:
    """Decode a JPEG that is read in one pass and lacks only its end marker; None: it lacks pixels.

    It is decoded with different bits behind it, over images of different colours. The results are the same if the file
    has all pixels. One of them is in memory at a time.
    """
    image, digests = None, set[bytes]()
    for bits, colour in _BEHIND:
        image = None  # its memory is free before the next needs as much
        image = _open(parts._replace(picture=parts.picture + bits), JPEG, size_px)
        image.im = Image.new(image.mode, image.size, colour).im
        with contextlib.suppress(OSError):
            image.load()
        image.tile = []  # Pillow shall not decode it again
        digests.add(_digest(image))
        if len(digests) > 1:
            return None
    return image


def _digest(image: Image.Image) -> bytes:
    """Return a digest of the pixels, of which a strip at a time is copied."""
    digest = hashlib.blake2b()
    for top in range(0, image.height, _STRIP_PX):
        strip = image.crop((0, top, image.width, min(top + _STRIP_PX, image.height)))
        digest.update(strip.tobytes())
    return digest.digest()


def _prepare(image: ImageFile.ImageFile, scans: int, size_px: int | None) -> None:
    """Choose how an image is decoded, by its header and the number of its scans that are kept in memory.

    Raises:
        Unreadable: it takes too much memory or time, or has samples of more than 8 bits.
    """
    size = f"{image.width} x {image.height}"
    if max(image.size) > MAX_SIDE_PX:
        raise Unreadable(f"more than {MAX_SIDE_PX:,} pixels a side: {size}")
    if scans > MAX_SCANS:
        raise Unreadable(f"a JPEG of more than {MAX_SCANS} scans")
    divisor = _divisor(image, scans, size_px)
    if divisor == 0:
        raise Unreadable(f"more than {MAX_PIXELS:,} pixels: {size}")
    if divisor > 1:
        image.draft(None, (image.width // divisor, image.height // divisor))
    if image.mode not in _EIGHT_BIT_MODES:
        raise Unreadable(f"more than 8 bits a channel: pixel format {image.mode}")
    if (key := image.info.get("transparency")) is not None:
        image.info["transparency"] = _in_eight_bits(key, str(image.tile[0].args))


def _divisor(image: ImageFile.ImageFile, scans: int, size_px: int | None) -> int:
    """Return the number that both sides are divided by when the image is decoded; 0: it is too large.

    An image of at most MAX_PIXELS is decoded whole. A larger JPEG keeps twice the pixels a side that it is resized to,
    where its size allows; of a progressive one all coefficients would be in memory.
    """
    pixels = image.width * image.height
    if pixels <= MAX_PIXELS:
        return 1
    if image.format != "JPEG" or scans or size_px is None or pixels > MAX_REDUCED_PIXELS:
        return 0
    left = min(image.size) // size_px
    return next((divisor for divisor in (8, 4) if left >= 2 * divisor), 2 if left >= 2 else 0)


def _in_eight_bits(key: int | tuple[int, ...] | bytes, raw_mode: str) -> int | tuple[int, ...] | bytes:
    """Return the transparent colour of a PNG, or the alpha of its palette, as Pillow needs it for decoded pixels."""
    if isinstance(key, bytes):
        return key[:256]
    if isinstance(key, tuple):
        return tuple(value >> 8 for value in key) if raw_mode == "RGB;16B" else key
    levels = _GREY_LEVELS.get(raw_mode, 256)
    return key % levels * (255 // (levels - 1))


def _flatten(image: Image.Image, kind: str, alpha: str | None) -> Image.Image:
    """Composite an image onto the ground, and convert it to RGB.

    This comes before the resize. A sum of opaque colours is linear, so the result is that of resizing the premultiplied
    pixels; resizing the colours apart from alpha would mix in those of pixels that cannot be seen.
    """
    if alpha in (None, DROP) or not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    image = image if image.mode == "RGBA" else image.convert("RGBA")
    if kind in (BMP, DIB) and not any(image.getchannel("A").getextrema()):
        # many programs leave the fourth byte of a pixel unset
        return image.convert("RGB")
    ground = Image.new("RGB", image.size, _COLOURS.get(alpha, alpha))
    ground.paste(image, mask=image)
    return ground


def is_plain_jpeg(content: bytes, size: tuple[int, int]) -> bool:
    """Return whether a file is an upright RGB JPEG of (width, height), which any reader decodes as ``decode`` does."""
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            is_rgb = image.mode == "RGB" and image.size == size
        parts = image_files.part(content)
        is_ended = b"\xff\xd9" in parts.picture
        return is_rgb and is_ended and image_files.read_orientation(parts.exif, parts.xmp) == 1
    except Exception:  # damage may make a decoder raise anything
        return False


def resize(image: np.ndarray, size_px: int | None) -> np.ndarray:
    """Resize pixels, uint8 ``[H, W, 3]`` or float32 ``[H, W]``, as ``decode`` does."""
    return image if size_px is None else _fit(Image.fromarray(image), size_px)


def _fit(image: Image.Image, size_px: int | None) -> np.ndarray:
    if size_px is not None and image.size != (size_px, size_px):
        image = ImageOps.fit(image, (size_px, size_px), method=Image.Resampling.BICUBIC)
    return np.asarray(image)


def is_one_colour(image: np.ndarray) -> bool:
    """Return whether all pixels, uint8 ``[H, W, 3]``, are the same."""
    return all((row == image[0, 0]).all() for row in image)  # most images end at the first row


def describe_resize(size_px: int | None) -> str:
    """Describe the resizing that ``decode`` does, for the manifest."""
    if size_px is None:
        return "none: images kept at their own size"
    return f"shorter side to {size_px} px (bicubic, antialiased), centre {size_px} x {size_px} px cut out"


def combine_alpha(values: Sequence[str | None]) -> str | None:
    """Return what was done with transparency in a store that is made of several, as the manifest says it."""
    return values[0] if len({value or DROP for value in values}) == 1 else MIXED


def describe_alpha(alpha: str | None) -> str:
    """Describe what was done with transparency, as the manifest says it."""
    if alpha in (None, DROP):
        return "dropped"
    return "differs: made of stores that treat it differently" if alpha == MIXED else f"composited onto {alpha}"
