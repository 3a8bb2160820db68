"""A readable picture is read whatever lies beside its pixels; what is not read says why."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from ssl_dist import store
from ssl_dist.errors import SourceError, Unreadable
from ssl_dist.store.decode import decode, is_plain_jpeg
from ssl_dist.store.image_files import MAX_PARTS
from tests.store.hostile.images import chunk, resized
from tests.store.sources import built, png, random_images

PIXELS = np.kron(np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8), np.ones((4, 4, 1), np.uint8))
ORIENTATION, ASCII, SHORT, LONG, FLOAT = 0x0112, 2, 3, 4, 11


def encoded(kind: str, image: np.ndarray = PIXELS, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, kind, **options)
    return out.getvalue()


def exif_of(*tags: tuple[int, int, int, bytes], order: str = "<", behind: bytes = b"") -> bytes:
    """Return EXIF of these tags: number, type, count, and the four bytes of the value or its place."""
    entries = b"".join(struct.pack(f"{order}HHI", *tag[:3]) + tag[3].ljust(4, b"\0") for tag in tags)
    start = b"II*\0" if order == "<" else b"MM\0*"
    return start + struct.pack(f"{order}IH", 8, len(tags)) + entries + bytes(4) + behind


def orientation(value: int, order: str = "<") -> tuple[int, int, int, bytes]:
    return ORIENTATION, SHORT, 1, struct.pack(f"{order}H", value)


def segment(kind: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 255, kind, len(content) + 2) + content


def jpeg_with(*segments: bytes) -> bytes:
    plain = encoded("JPEG")
    return plain[:2] + b"".join(segments) + plain[2:]


def png_with(*chunks: bytes, behind: bool = False) -> bytes:
    plain = encoded("PNG")
    place = len(plain) - 12 if behind else 33
    return plain[:place] + b"".join(chunks) + plain[place:]


TURNED = orientation(6)


def gps(tag: tuple[int, int, int, bytes], behind: bytes = b"") -> bytes:
    """Return EXIF of a picture on its side whose directory of GPS, at byte 38, has one tag."""
    entry = struct.pack("<HHHI", 1, *tag[:3]) + tag[3].ljust(4, b"\0") + bytes(4)
    return exif_of(TURNED, (0x8825, LONG, 1, struct.pack("<I", 38)), behind=entry + behind)


ODD_EXIF = {
    "a time of GPS as text": gps((7, ASCII, 9, struct.pack("<I", 56)), b"12:00:00\0"),
    "a version of GPS as text": gps((0, ASCII, 4, b"2.2\0")),
    "a latitude as text": gps((2, ASCII, 3, b"5 6\0")),
    "a resolution as text": exif_of(TURNED, (0x011A, ASCII, 4, b"72\0\0"), (0x0128, SHORT, 1, b"\2\0")),
    "a width as text": exif_of((0x0100, ASCII, 2, b"9\0"), TURNED),
    "a compression as text": exif_of((0x0103, ASCII, 2, b"9\0"), TURNED),
    "a maker as a number": exif_of((0x010F, FLOAT, 1, b"\0\0\xc0\x7f"), TURNED),
    "a copyright as a number": exif_of(TURNED, (0x8298, FLOAT, 1, b"\0\0\xc0\x7f")),
    "a resolution of no value": exif_of(TURNED, (0x011A, 5, 0, b""), (0x0128, SHORT, 1, b"\2\0")),
    "a directory that contains itself": exif_of(TURNED, (0x8769, LONG, 1, b"\x08\0\0\0"), (0x8825, LONG, 1, b"\x08")),
    "a value outside the file": exif_of((0x010E, ASCII, 1 << 30, b"\xff" * 4), TURNED),
    "a type that does not exist": exif_of((0x010E, 99, 1, b"\xff" * 4), TURNED),
    "the other order of bytes": exif_of(orientation(6, ">"), order=">"),
    "an orientation of four bytes": exif_of((ORIENTATION, LONG, 1, b"\6")),
    "a directory that is cut": exif_of(TURNED, (0x8769, LONG, 1, b"\x08"))[:24],
}
NO_ORIENTATION = {
    "0": exif_of(orientation(0)),
    "9": exif_of(orientation(9)),
    "text": exif_of((ORIENTATION, ASCII, 2, b"6\0")),
    "two numbers": exif_of((ORIENTATION, SHORT, 2, b"\6\0\6\0")),
    "a million numbers": exif_of((ORIENTATION, SHORT, 1 << 20, b"\6")),
    "none": exif_of((0x010E, ASCII, 1, b"")),
    "no directory": b"II*\0\xff\xff\xff\xff",
    "no EXIF": b"\0" * 20,
    "nothing": b"",
    "a cut header": b"II*\0\x08",
}
CARRIERS: dict[str, Callable[[bytes], bytes]] = {
    "JPEG": lambda exif: jpeg_with(segment(0xE1, b"Exif\0\0" + exif)),
    "PNG": lambda exif: png_with(chunk(b"eXIf", exif)),
    "WebP": lambda exif: encoded("WEBP", exif=b"Exif\0\0" + exif),
}


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("exif", ODD_EXIF)
def test_a_picture_that_lies_on_its_side_is_turned_whatever_its_other_tags_are(exif: str, carrier: str) -> None:
    expected = np.rot90(decode(CARRIERS[carrier](b""), None), 3)
    assert np.array_equal(decode(CARRIERS[carrier](ODD_EXIF[exif]), None), expected)


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("exif", NO_ORIENTATION)
def test_a_picture_without_a_valid_orientation_is_upright(exif: str, carrier: str) -> None:
    upright = decode(CARRIERS[carrier](b""), None)
    assert np.array_equal(decode(CARRIERS[carrier](NO_ORIENTATION[exif]), None), upright)


@pytest.mark.parametrize("value", range(1, 9))
def test_each_orientation_is_that_of_pillow(value: int) -> None:
    content = CARRIERS["PNG"](exif_of(orientation(value)))
    with Image.open(io.BytesIO(content)) as image:
        assert np.array_equal(decode(content, None), np.asarray(ImageOps.exif_transpose(image)))


def test_the_orientation_is_read_where_programs_write_it() -> None:
    profile = b"\nexif\n      26\n" + b"".join(b"%02x" % byte for byte in exif_of(TURNED)) + b"\n"
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    sides = [
        png_with(chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile))),
        png_with(chunk(b"tEXt", b"Raw profile type exif\0" + profile), behind=True),
        png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)),
        png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp + bytes(4 << 20)))),
        jpeg_with(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp)),
        jpeg_with(segment(0xE1, b"Exif\0\0" + exif_of(TURNED)[:12]), segment(0xE1, b"Exif\0\0" + exif_of(TURNED)[12:])),
        encoded("WEBP", xmp=xmp),
    ]
    for content in sides:
        assert decode(content, None).shape == (16, 12, 3)
    stated = jpeg_with(
        segment(0xE1, b"Exif\0\0" + exif_of(orientation(1))), segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp)
    )
    assert decode(stated, None).shape == (12, 16, 3)


def test_only_an_upright_jpeg_is_plain() -> None:
    assert is_plain_jpeg(jpeg_with(), (16, 12))
    assert is_plain_jpeg(jpeg_with(segment(0xE1, b"Exif\0\0" + exif_of(orientation(1)))), (16, 12))
    for value in (0, 6, 9):
        assert not is_plain_jpeg(jpeg_with(segment(0xE1, b"Exif\0\0" + exif_of(orientation(value)))), (16, 12))


PACKED = zlib.compress(bytes(20 << 20), 9)
BESIDE_PNG = {
    "a large packed text": [chunk(b"zTXt", b"parameters\0\0" + PACKED)],
    "a large packed international text": [chunk(b"iTXt", b"workflow\0\1\0\0\0" + PACKED)],
    "a large profile": [chunk(b"iCCP", b"name\0\0" + PACKED)],
    "large texts in all": 70 * [chunk(b"zTXt", b"name\0\0" + zlib.compress(bytes(1 << 20), 9))],
    "a text of an unknown packing": [chunk(b"zTXt", b"name\0\7" + PACKED)],
    "a text with a wrong checksum": [chunk(b"tEXt", b"name\0text")[:-1] + b"\0"],
    "a short gamma": [chunk(b"gAMA", b"\0")],
    "texts with names of Pillow's": [
        chunk(b"tEXt", name + b"\0on") for name in (b"interlace", b"transparency", b"bbox")
    ],
    "an animation that is damaged": [chunk(b"acTL", b"\0\0\0\2")],
    "EXIF that is damaged": [chunk(b"eXIf", b"\xff" * 30)],
}


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("beside", BESIDE_PNG)
def test_a_png_is_read_whatever_lies_beside_its_pixels(beside: str, behind: bool) -> None:
    assert np.array_equal(decode(png_with(*BESIDE_PNG[beside], behind=behind), None), PIXELS)


BESIDE_JPEG = {
    "a block of Photoshop's that is cut": segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4"),
    "a list of several images": segment(
        0xE2, b"MPF\0" + b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", 0xB001, 4, 1, 2)
    ),
    "a JFIF header that is cut": segment(0xE0, b"JFIF\0"),
    "a mark of Adobe's that is cut": segment(0xEE, b"Adobe"),
    "a comment and a profile": segment(0xFE, b"\xff\xd8\xff\xda") + segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(9)),
    "an empty segment": segment(0xE5, b""),
}


@pytest.mark.parametrize("beside", BESIDE_JPEG)
def test_a_jpeg_is_read_whatever_lies_beside_its_pixels(beside: str) -> None:
    assert np.array_equal(decode(jpeg_with(BESIDE_JPEG[beside]), None), decode(encoded("JPEG"), None))


def test_a_file_of_millions_of_parts_is_refused() -> None:
    for content in (jpeg_with(MAX_PARTS * segment(0xFE, b"")), png_with(MAX_PARTS * chunk(b"tEXt", b""))):
        with pytest.raises(Unreadable, match="a file of more than 131,072 parts"):
            decode(content, None)


# Formats that are not read

HEADS = {
    "a TIFF file": [encoded("TIFF"), b"MM\0*" + bytes(99), b"II+\0" + bytes(99)],
    "a GIF file": [encoded("GIF")],
    "an AVIF file": [b"\0\0\0\x20ftypavif" + bytes(99), b"\0\0\0\x20ftypmif1\0\0\0\0miafavif" + bytes(9)],
    "a HEIC file": [b"\0\0\0\x18ftyp" + brand + bytes(99) for brand in (b"heic", b"heix", b"mif1", b"hevc")],
    "a JPEG 2000 file": [b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99), b"\xff\x4f\xff\x51" + bytes(99)],
    "a JPEG XL file": [b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99)],
    "a PSD file": [b"8BPS\0\1" + bytes(99)],
    "an ICO file": [encoded("ICO", random_images(1, 16)[0])],
    "a PNM file": [encoded("PPM"), b"P2 2 2 255 0 0 0 0", b"P7\n"],
    "a raw photo": [
        b"II*\0\x10\0\0\0CR\2\0",
        b"IIU\0",
        b"IIRO\x08\0\0\0",
        b"FUJIFILMCCD-RAW 0201",
        b"\0\0\0\x18ftypcrx ",
    ],
    "an OpenEXR file": [b"\x76\x2f\x31\x01\2\0\0\0"],
    "a Radiance HDR file": [b"#?RADIANCE\n"],
    "a DDS file": [encoded("DDS")],
    "an XCF file": [b"gimp xcf v011\0"],
    "a PDF file": [b"%PDF-1.7\n"],
    "an SVG file": [b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- --><svg >"],
}


@pytest.mark.parametrize("name", HEADS)
def test_a_format_that_is_not_read_is_named(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for content in HEADS[name]:
        with pytest.raises(Unreadable, match=f"^{name}, a format that is not read yet$"):
            decode(content, 16)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.jpg").write_bytes(HEADS[name][0])
    with pytest.raises(SourceError, match=rf"none of its 1 image files could be read \(a\.jpg: {name}, a format"):
        store.build(tmp_path / "d", tmp_path / "s", workers=1)
    (tmp_path / "d" / "b.png").write_bytes(png(random_images(1, 8)[0]))
    assert built(tmp_path / "d", tmp_path / "s").manifest.skipped == 1
    assert f"left out 1 .jpg: {name}, a format that is not read yet (a.jpg)" in caplog.text


SAME_FAULT: dict[str, tuple[str, list[bytes]]] = {
    "pixels": (
        "more than 64,000,000 pixels",
        [resized(encoded("PNG"), *size) for size in ((9000, 8000), (60000, 50000))]
        + [resized(encoded("WEBP", lossless=True), 16383, 16000)],
    ),
    "side": ("more than 65,536 pixels a side", [resized(encoded("PNG"), size, 1) for size in (70000, 80000)]),
    "depth": ("more than 8 bits a channel", [encoded("PNG", PIXELS[..., 0].astype(np.uint16))]),
    "cut": ("a JPEG file that cannot be decoded", [encoded("JPEG")[:-length] for length in (20, 70, 90, 400)]),
    "cut PNG": ("a PNG file that cannot be decoded", [encoded("PNG")[:length] for length in (10, 30, 50, 70)]),
    "cut WebP": ("a WebP file that cannot be decoded", [encoded("WEBP")[:length] for length in (15, 40, 60)]),
    "text": ("a file that does not begin as an image does", [b"hello", b"\x89PN", bytes(99)]),
    "nothing": ("an empty file", [b""]),
    "a page": ("a web page, not an image", [b"<html>404</html>", b"\n<!DOCTYPE HTML><html>"]),
}


@pytest.mark.parametrize("fault", SAME_FAULT)
def test_files_with_the_same_fault_have_the_same_reason(fault: str) -> None:
    """A summary counts by the text before the first colon; numbers stand behind it."""
    expected, contents = SAME_FAULT[fault]
    for content in contents:
        with pytest.raises(Unreadable) as raised:
            decode(content, 24)
        assert str(raised.value).partition(": ")[0] == expected
        assert "_io." not in str(raised.value)


# Large photos


@pytest.fixture
def photo() -> Image.Image:
    """Return a picture of 480 x 360 with structure of many sizes, as photos have it."""
    random, whole = np.random.default_rng(1), np.zeros((360, 480, 3))
    for cells in (3, 12, 48, 180):
        grid = random.normal(0, 60 / np.log2(cells), (cells, cells, 3))
        for channel in range(3):
            plane = Image.fromarray(grid[..., channel].astype(np.float32))
            whole[..., channel] += np.asarray(plane.resize((480, 360), Image.Resampling.BICUBIC))
    return Image.fromarray(np.clip(128 + whole, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("size_px", [16, 30, 90, 170])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"quality": 50}, {"exif": b"Exif\0\0" + exif_of(TURNED)}])
def test_a_photo_decoded_at_a_fraction_is_close_to_the_whole_one_resized(
    size_px: int, options: dict[str, object], photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fraction of the DCT's coefficients is about a mean over pixels, which the bicubic filter is not.

    Where twice the pixels a side are left before the resize, values differed by up to 4 levels, otherwise by up to 10;
    on average by 0.2 to 1.0.
    """
    content = encoded("JPEG", np.asarray(photo), **{"quality": 90, **options})
    whole = decode(content, size_px)
    monkeypatch.setattr("ssl_dist.store.decode.MAX_PIXELS", 480 * 360 - 1)
    part = decode(content, size_px)
    difference = np.abs(part.astype(int) - whole)
    assert not np.array_equal(part, whole), "it was decoded whole"
    assert difference.mean() < 1.2
    assert difference.max() <= (5 if 4 * size_px <= 360 else 12)


def test_a_photo_of_108_megapixels_is_resized() -> None:
    flat = encoded("JPEG", np.full((64, 64, 3), 77, np.uint8))
    assert decode(resized(flat, 12000, 9000), 224).shape == (224, 224, 3)
    assert decode(resized(flat, 16320, 12240), 224).shape == (224, 224, 3)


@pytest.mark.parametrize(
    ("size", "size_px", "options"),
    [
        ((12000, 9000), None, {}),  # it would be kept whole
        ((12000, 9000), 4501, {}),  # half of it would be enlarged
        ((12000, 9000), 24, {"progressive": True}),  # all coefficients are kept in memory, at any fraction
        ((16384, 16000), 24, {}),  # each block takes time, at any fraction
        ((65500, 2000), 1001, {}),
    ],
)
def test_a_photo_that_takes_too_much_is_refused(
    size: tuple[int, int], size_px: int | None, options: dict[str, object]
) -> None:
    content = resized(encoded("JPEG", np.zeros((64, 64, 3), np.uint8), **options), *size)
    with pytest.raises(Unreadable, match=f"more than 64,000,000 pixels: {size[0]} x {size[1]}"):
        decode(content, size_px)
