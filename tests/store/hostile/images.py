"""Hostile image files: each format and mode, false sizes in headers, and files that unpack to far more."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from ssl_dist.store.decode import decode, is_plain_jpeg
from tests.store.hostile.meter import Case
from tests.store.hostile.mutate import mutated

_SIZES = (0, 1, 2, 8000, 16383, 16384, 60000, 65500, 65535, 2**31 - 1)
_LARGEST = (8000, 8000)  # the largest image that is decoded
_LARGEST_S = 2.0  # of CPU time that the largest PNG, JPEG and BMP may take: 0.6 to 1.3 s on an idle core


def _attempt(content: bytes, size_px: int | None = 24) -> Case:
    def attempt() -> None:
        is_plain_jpeg(content, (24, 24))
        image = decode(content, size_px)
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3
        assert size_px is None or image.shape == (size_px, size_px, 3)

    return Case(attempt, content)


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def seeds() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 30, 4), dtype=np.uint8)
    pixels = np.kron(pixels[::3, ::3], np.ones((3, 3, 1), np.uint8))
    image, alpha = Image.fromarray(pixels[..., :3].copy()), Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "turned"
    palette, text = image.quantize(16), PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 500, zip=True)
    made = [
        _saved(image, "JPEG"),
        _saved(image, "JPEG", progressive=True, exif=exif),
        _saved(image.convert("L"), "JPEG", subsampling=0),
        _saved(image.convert("CMYK"), "JPEG"),
        _saved(image, "PNG", pnginfo=text, exif=exif, icc_profile=bytes(300)),
        _saved(alpha, "PNG"),
        _saved(palette, "PNG", transparency=bytes(16)),
        _saved(image.convert("1"), "PNG"),
        _saved(image, "PNG", save_all=True, append_images=[image.rotate(90), image.rotate(180)], duration=9),
        _saved(Image.fromarray(pixels[..., 0].astype(np.uint16) * 256), "PNG"),
        sixteen_bits(pixels[..., :3]),
        _saved(image, "WEBP", exif=exif),
        _saved(alpha, "WEBP", lossless=True),
        _saved(image, "WEBP", save_all=True, append_images=[image.rotate(90), image.rotate(180)]),
        _saved(image, "BMP"),
        _saved(palette, "BMP"),
        _saved(image.convert("1"), "BMP"),
        run_length_bmp(30, 24, 20 * b"\x1e\5\0\0" + b"\0\2\0\1\0\4\1\2\3\4\x1a\6\0\0" + 2 * b"\x1e\7\0\0" + b"\0\1"),
    ]
    for content in made:
        with Image.open(io.BytesIO(content)) as opened:
            opened.load()
    return made


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(width: int, height: int, depth: int, colour: int, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def sixteen_bits(pixels: np.ndarray) -> bytes:
    """Return a PNG of 16 bits a channel whose upper bytes are these pixels, uint8 [H, W, 3]; the lower ones are 255."""
    height, width, _ = pixels.shape
    wide = (pixels.astype(">u2") << 8) | 255
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide)
    return png_of(width, height, 16, 2, chunk(b"IDAT", zlib.compress(rows)))


def run_length_bmp(width: int, height: int, runs: bytes) -> bytes:
    offset = 14 + 40 + 1024
    head = struct.pack("<2sIHHI", b"BM", offset + len(runs), 0, 0, offset)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return head + info + bytes(range(256)) * 4 + runs


def _segment(kind: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 255, kind, len(content) + 2) + content


def jpeg_of_scans(side: int, scans: int, between: bytes = b"") -> bytes:
    """Return a grey progressive JPEG with this many scans, each of which is empty and costs a pass over all blocks."""
    blocks = (side // 8) ** 2
    content = b"\xff\xd8" + _segment(0xDB, b"\0" + bytes(64 * [1]))
    content += _segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    content += _segment(0xC4, b"\0" + bytes([1] + 15 * [0]) + b"\0")  # DC: the bit 0 is no difference
    content += _segment(
        0xC4, b"\x10" + bytes([1, 1] + 14 * [0]) + b"\xe0\0"
    )  # AC: 0 and 14 bits end many blocks, 10 one
    content += _segment(0xDA, b"\1\1\0\0\0\0") + bytes(blocks // 8)
    runs = "".join("10" if length == 1 else f"0{length - (1 << 14):014b}" for length in _runs(blocks))
    packed = int(runs.ljust(-(-len(runs) // 8) * 8, "1"), 2).to_bytes(-(-len(runs) // 8), "big")
    scan = between + _segment(0xDA, b"\1\1\0\1\x3f\0") + packed.replace(b"\xff", b"\xff\0")
    return content + scans * scan + b"\xff\xd9"


def _runs(blocks: int) -> Iterator[int]:
    while blocks:
        length = min(blocks, (1 << 15) - 1) if blocks >= 1 << 14 else 1
        yield length
        blocks -= length


def self_pointing_exif() -> bytes:
    """Return a JPEG whose EXIF directories follow themselves and contain themselves."""
    entry = struct.pack("<HHII", 0x8769, 4, 1, 8) + struct.pack("<HHII", 0x8825, 4, 1, 8)
    tiff = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 2) + entry + struct.pack("<I", 8)
    plain = _saved(Image.new("RGB", (24, 24)), "JPEG")
    return plain[:2] + _segment(0xE1, b"Exif\0\0" + tiff) + plain[2:]


def warned_of() -> Iterator[bytes]:
    """Yield images that Pillow warns of; palettes with transparency, another such kind, are among ``seeds``."""
    yield self_pointing_exif()
    yield png_of(10000, 9000, 8, 2)  # more pixels than Pillow's bound, less than twice that
    yield png_of(24, 24, 8, 2, chunk(b"acTL", bytes(8)), chunk(b"IDAT", zlib.compress(bytes(73 * 24))))
    plain, tags = _saved(Image.new("RGB", (24, 24)), "JPEG"), struct.pack("<HHII", 0x0112, 3, 9, 1 << 20)
    yield plain[:2] + _segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\1\0" + tags) + plain[2:]


def bombs() -> Iterator[bytes]:
    """Yield small files that claim a large size, or unpack to one."""
    zeros = zlib.compress(bytes(64 << 20), 9)
    pixels = chunk(b"IDAT", zlib.compress(bytes(73 * 24)))
    for width, height in ((60000, 60000), (2**31 - 1, 2**31 - 1), (1, 2**31 - 1), (70000, 1), (10000, 9000)):
        yield png_of(width, height, 8, 2, chunk(b"IDAT", zeros[:10000]))
    yield png_of(24, 24, 8, 2, chunk(b"IDAT", zeros))
    for kind in (b"zTXt", b"iTXt", b"iCCP"):
        inside = b"name\0\1\0\0\0" if kind == b"iTXt" else b"name\0\0"
        yield png_of(24, 24, 8, 2, chunk(kind, inside + zeros), pixels)
    packed = zlib.compress(b"\nexif\n 9\n" + b"49492a00" * (4 << 20), 9)
    yield png_of(24, 24, 8, 2, chunk(b"zTXt", b"Raw profile type exif\0\0" + packed), pixels)
    yield png_of(24, 24, 8, 2, 200 * chunk(b"zTXt", b"name\0\0" + zlib.compress(bytes(1 << 20), 9)), pixels)
    yield png_of(24, 24, 8, 2, 20000 * chunk(b"tEXt", b"a\0b"), pixels)
    yield jpeg_of_scans(2000, 1000)
    yield jpeg_of_scans(8000, 1000)
    yield jpeg_of_scans(8000, 1000, between=b"\xff\x01")  # a marker without a length
    yield run_length_bmp(60000, 60000, b"\xff\1")
    flat = Image.new("RGB", (300, 300))
    frames = [Image.new("RGB", (300, 300), (number, 0, 0)) for number in range(200)]
    yield _saved(flat, "WEBP", save_all=True, append_images=frames)
    yield resized(_saved(flat, "WEBP", save_all=True, append_images=frames[:3]), 16384, 16384)
    yield resized(_saved(flat, "WEBP", lossless=True), 16383, 16383)
    yield resized(_saved(flat, "JPEG"), 65500, 65500)
    yield resized(_saved(flat, "JPEG"), 16000, 16000)  # decoded at an eighth of its size
    yield resized(_saved(flat, "JPEG", progressive=True), 16000, 16000)
    yield from warned_of()
    yield from (b"", b"\xff\xd8", b"BM", b"RIFF\0\0\0\0WEBP", b"<html>404</html>", b"\x89PNG\r\n\x1a\n")
    yield _saved(flat, "GIF")
    yield _saved(flat, "TIFF")


def largest() -> Iterator[bytes]:
    """Yield the largest images that a store takes."""
    flat = Image.new("RGB", _LARGEST)
    yield _saved(flat, "PNG")
    yield _saved(Image.new("RGBA", _LARGEST), "PNG")
    yield _saved(flat, "JPEG", progressive=True)
    yield run_length_bmp(*_LARGEST, 16000 * b"\0\2\xff\xff")


def largest_cut_off() -> Iterator[bytes]:
    """Yield JPEG files of the largest size that lack some pixels, for which they are decoded several times."""
    flat = Image.new("RGB", _LARGEST)
    yield _saved(flat, "JPEG")[:-3000]
    yield _saved(flat, "JPEG", progressive=True)[:-3000]


def resized(content: bytes, width: int, height: int) -> bytes:
    """Change the size in an image's header."""
    changed = bytearray(content)
    if content[:4] == b"\x89PNG" and len(content) > 33:
        struct.pack_into(">II", changed, 16, width % 2**32, height % 2**32)
        struct.pack_into(">I", changed, 29, zlib.crc32(changed[12:29]))
    elif content[:2] == b"BM" and len(content) > 26:
        struct.pack_into("<II", changed, 18, width % 2**32, height % 2**32)
    elif content[:2] == b"\xff\xd8":
        frame = max(content.find(b"\xff\xc0\0"), content.find(b"\xff\xc2\0"))
        if frame > 0 and frame + 9 < len(content):
            struct.pack_into(">HH", changed, frame + 5, height % 2**16, width % 2**16)
    elif content[12:16] == b"VP8X" and len(content) > 30:
        changed[24:27] = ((width - 1) % 2**24).to_bytes(3, "little")
        changed[27:30] = ((height - 1) % 2**24).to_bytes(3, "little")
    elif content[12:16] == b"VP8L" and len(content) > 25:
        struct.pack_into("<I", changed, 21, (width - 1) % 2**14 | (height - 1) % 2**14 << 14)
    elif content[12:16] == b"VP8 " and len(content) > 30:
        struct.pack_into("<HH", changed, 26, width % 2**14, height % 2**14)
    return bytes(changed)


def checked(content: bytes) -> bytes:
    """Correct the checksums of a PNG's chunks, so that the decoder gets behind them."""
    out, position = bytearray(content), 8
    while position + 12 <= len(out):
        (length,) = struct.unpack_from(">I", out, position)
        end = position + 8 + length
        if end + 4 > len(out):
            break
        struct.pack_into(">I", out, end, zlib.crc32(out[position + 4 : end]))
        position = end + 4
    return bytes(out)


def cases(folder: Path, seed: int) -> Iterator[Case]:
    choose, real = random.Random(seed), seeds()
    for content in real:
        yield _attempt(content, None)
    for content in bombs():
        yield _attempt(content)
    for content in largest():
        yield _attempt(content)._replace(honest_s=_LARGEST_S)
    for content in largest_cut_off():
        yield _attempt(content)._replace(honest_s=2 * _LARGEST_S)
    while True:
        content = mutated(real, choose) if choose.random() < 0.85 else choose.choice(real)
        if choose.random() < 0.2:
            content = resized(content, choose.choice(_SIZES), choose.choice(_SIZES))
        if content.startswith(b"\x89PNG") and choose.random() < 0.7:
            content = checked(content)
        yield _attempt(content, choose.choice((24, 24, None)))
