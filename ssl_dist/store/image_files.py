"""The bytes of an image file, before it is decoded: its format, the data beside its pixels, and its orientation.

A decoder also parses texts, profiles, thumbnails and tags, and refuses a picture for a fault in them. So it is given
the picture alone. Of the data beside it only the orientation is read, here, where no other tag can do harm.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import NamedTuple

from ssl_dist.errors import Unreadable

HEAD_BYTES = 512  # of a file's start: enough to know its format
MAX_PARTS = 1 << 17  # segments of a JPEG's header, chunks of a PNG: each costs time, and a file needs a few thousand
_MAX_BESIDE_BYTES = 1 << 20  # of the data that may hold the orientation; it stands near the start

JPEG, PNG, WEBP, BMP, DIB = "a JPEG file", "a PNG file", "a WebP file", "a BMP file", "a DIB file"
WEB_PAGE = "a web page"
_FORMATS = {
    JPEG: rb"\xff\xd8\xff",
    PNG: rb"\x89PNG\r\n\x1a\n",
    WEBP: rb"RIFF....WEBP",
    BMP: rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    DIB: rb"[\x28\x34\x38\x40\x6c\x7c]\0\0\0.{8}\x01\x00",  # a BMP file without its first 14 bytes
    "a GIF file": rb"GIF8[79]a",
    "a raw photo": rb"II\*\0.{4}CR|II(U\0|RO|RS)|MMOR|FUJIFILMCCD-RAW|FOVb|....ftypcrx ",
    "a TIFF file": rb"II[*+]\0|MM\0[*+]",
    "an AVIF file": rb"....ftyp.{0,24}avi[fs]",
    "a HEIC file": rb"....ftyp(hei|hev|mif1|msf1)",
    "a JPEG 2000 file": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    "a JPEG XL file": rb"\0\0\0\x0cJXL \r\n\x87\n",
    "a PSD file": rb"8BPS\x00[\x01\x02]",
    "an ICO file": rb"\x00\x00\x01\x00[^\x00]\x00...\x00",
    "a PNM file": rb"P[1-7]\s",
    "an OpenEXR file": rb"\x76\x2f\x31\x01",
    "a Radiance HDR file": rb"#\?(RADIANCE|RGBE)",
    "a DDS file": rb"DDS \x7c\0\0\0",
    "an XCF file": rb"gimp xcf ",
    "a PDF file": rb"%PDF-",
    "an SVG file": rb"(\xef\xbb\xbf)?\s*(<\?xml.*?)?<svg[\s>]",
    WEB_PAGE: rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype html|html)",
}
_PATTERNS = {name: re.compile(pattern, re.DOTALL) for name, pattern in _FORMATS.items()}

_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd7]")  # a JPEG marker that ends compressed data
_SCAN, _END, _PROGRESSIVE = 0xDA, 0xD9, (0xC2, 0xCA)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BESIDE = frozenset((*range(0xE0, 0xF0), 0xFE))  # segments of applications, and comments
_COLOURS = re.compile(rb"JFIF\0.{9}|Adobe.{7}", re.DOTALL)  # segments of applications that say what the colours mean
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"

_CHUNK = re.compile(rb"[A-Za-z]{4}")
_EXIF_TEXTS, _XMP_TEXT = (b"Raw profile type exif", b"exif"), b"XML:com.adobe.xmp"  # keywords of a PNG's texts

_ORIENTATION = 0x0112  # the tag
_INTEGERS = {3: "H", 4: "I", 8: "h", 9: "i"}  # types of a tag
_ORIENTATION_IN_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def format_of(start: bytes) -> str | None:
    """Return the format that the first HEAD_BYTES bytes of a file show, with its article; None: it is not known."""
    return next((name for name, pattern in _PATTERNS.items() if pattern.match(start[:HEAD_BYTES])), None)


class Parts(NamedTuple):
    """An image file in parts.

    Attributes:
        picture: the file without the data beside its pixels.
        exif: its EXIF data; empty if there is none, and in formats other than JPEG and PNG.
        xmp: its XMP data, likewise.
        scans: number of scans of a JPEG that is decoded only when all of them are read; 0 for a picture that is read
            in one pass.
    """

    picture: bytes
    exif: bytes = b""
    xmp: bytes = b""
    scans: int = 0


def part(content: bytes) -> Parts:
    """Part a JPEG or PNG file from the data beside its pixels.

    Raises:
        Unreadable: the file has more than MAX_PARTS parts.
    """
    if content.startswith(b"\xff\xd8"):
        return _part_jpeg(content)
    return _part_png(content) if content.startswith(b"\x89PNG") else Parts(content)


def _part_jpeg(content: bytes) -> Parts:
    """Part the segments before the first scan.

    Source: ITU-T T.81, B.1 and B.2.
    """
    kept, exif, xmp, start, position = list[bytes](), b"", b"", 0, 2
    components, is_progressive, scans = 0, False, 0
    for _ in range(MAX_PARTS):
        if not (marker := _MARKER.search(content, position)):
            break
        kind, inside = content[marker.start() + 1], marker.end() + 2
        if kind in (_SCAN, _END):
            if kind == _SCAN and (is_progressive or content[inside] < components):
                scans = _count_scans(content, marker.start())
            break
        position = marker.end() + int.from_bytes(content[marker.end() : inside], "big")
        if kind in _FRAMES:
            components, is_progressive = content[inside + 5], kind in _PROGRESSIVE
        elif kind in _BESIDE and not _COLOURS.match(content, inside, position):
            segment = content[inside:position]
            kept.append(content[start : marker.start()])
            start = position
            if segment.startswith(_EXIF) and len(exif) < _MAX_BESIDE_BYTES:
                exif += segment[len(_EXIF) :]
            elif segment.startswith(_XMP):
                xmp = segment[len(_XMP) :]
    else:
        raise _too_many_parts()
    return Parts(b"".join([*kept, memoryview(content)[start:]]) if kept else content, exif, xmp, scans)


def _count_scans(content: bytes, position: int) -> int:
    """Count the scans from a position on.

    The markers are followed one by one, since a search for scan markers would also find those of embedded thumbnails.
    """
    scans = 0
    while (marker := _MARKER.search(content, position)) and (kind := content[marker.start() + 1]) != _END:
        scans += kind == _SCAN
        position = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2], "big")
    return scans


def _part_png(content: bytes) -> Parts:
    """Part the chunks that a decoder does not need.

    Source: PNG (Third Edition), 5.3 and 5.4.
    """
    view, kept, position = memoryview(content), [memoryview(content)[:8]], 8
    beside: dict[bytes, bytes] = {}
    for _ in range(MAX_PARTS):
        kind = content[position + 4 : position + 8]
        end = position + 12 + int.from_bytes(content[position : position + 4], "big")
        is_needed = kind[:1].isupper() or kind == b"tRNS"
        if not _CHUNK.fullmatch(kind):  # the end, or no chunk
            break
        if is_needed:
            kept.append(view[position:end])
        else:
            name, data = _read_chunk(kind, view[position + 8 : end - 4])
            beside[name] = data
        position = end
    else:
        raise _too_many_parts()
    exif = beside.get(b"eXIf") or beside.get(b"exif") or _from_hex(beside.get(b"Raw profile type exif", b""))
    return Parts(b"".join(kept), exif, beside.get(_XMP_TEXT, b""))


def _read_chunk(kind: bytes, chunk: memoryview) -> tuple[bytes, bytes]:
    """Return the name and the content of a PNG's EXIF, or of a text that may hold the orientation."""
    if kind == b"eXIf":
        return kind, bytes(chunk[:_MAX_BESIDE_BYTES])
    if kind not in (b"tEXt", b"zTXt", b"iTXt"):
        return b"", b""
    keyword = bytes(chunk[:80]).partition(b"\0")[0]
    if keyword not in (*_EXIF_TEXTS, _XMP_TEXT):
        return b"", b""
    start, is_packed = len(keyword) + 1, kind == b"zTXt"
    text = bytes(chunk[start : start + _MAX_BESIDE_BYTES])
    if kind == b"iTXt":
        is_packed, text = text[:1] == b"\1", text[2:].split(b"\0", 2)[-1]
    elif is_packed:
        text = text[1:]
    try:
        return keyword, zlib.decompressobj().decompress(text, _MAX_BESIDE_BYTES) if is_packed else text
    except zlib.error:
        return b"", b""


def _from_hex(profile: bytes) -> bytes:
    """Return the EXIF data that ImageMagick writes as text: an empty line, a name, a length, and hexadecimal digits."""
    digits = b"".join(profile.split(b"\n")[3:])
    try:
        return bytes.fromhex(digits[: len(digits) // 2 * 2].decode("ascii"))
    except ValueError:
        return b""


def _too_many_parts() -> Unreadable:
    return Unreadable(f"a file of more than {MAX_PARTS:,} parts")


def read_orientation(exif: bytes, xmp: bytes) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if none is given, 0 if a value is given that does not exist.

    Source: CIPA DC-008 (Exif 2.32), 4.6.2 and 4.6.4; XMP is read where EXIF does not have the tag.
    """
    value = _read_tag(re.sub(b"^(Exif\0\0){1,2}", b"", exif))
    if value is None:
        found = _ORIENTATION_IN_XMP.search(xmp)
        value = int(found[1]) if found else 1
    return value if 1 <= value <= 8 else 0


def _read_tag(exif: bytes) -> int | None:
    """Return the orientation in EXIF's first directory; 0: it is not one whole number; None: it is not there."""
    try:
        order = {b"II*\0": "<", b"II\0*": "<", b"MM\0*": ">", b"MM*\0": ">"}[exif[:4]]
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (number,) = struct.unpack_from(f"{order}H", exif, start)
    except (KeyError, struct.error):
        return None
    entries = exif[start + 2 : start + 2 + 12 * number]
    value = None
    for tag, kind, count, field in struct.iter_unpack(f"{order}HHI4s", entries[: len(entries) // 12 * 12]):
        if tag == _ORIENTATION:
            is_number = kind in _INTEGERS and count == 1
            value = struct.unpack_from(order + _INTEGERS[kind], field)[0] if is_number else 0
    return value
