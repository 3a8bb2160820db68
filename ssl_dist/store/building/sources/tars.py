"""Tars read forwards, one header at a time, without tarfile.

Python's tarfile reads what a header says before anyone can look at it: sparse maps without end, records within records
that take the square of their length in time and memory, headers upon headers that take its stack, in some of its
versions members that lie before themselves, for ever; and it takes a damaged header for the end. What a tar of images
needs is little: names, sizes, and the way from one member to the next.

Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended Header"; GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

from ssl_dist.store.building.sources.files import most_unpacked

_BLOCK = 512
_MOST_HEADER_BYTES = 1 << 20  # of what says more of the member that follows
_MOST_HEADERS = 16  # of them, before one member
_MOST_SIZE = 1 << 63
_OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
COMPRESSED = tuple(_OPENERS)
_REGULAR, _NO_DATA = b"0\x007", b"123456"  # contiguous files are regular; links, devices and folders have no data
_OCTAL, _DECIMAL = re.compile(rb"[0-7]{1,24}"), re.compile(rb"[0-9]{1,20}")
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL, _SPARSE = b"L", b"K", b"xX", b"g", b"S"


class _Header(NamedTuple):
    name: str
    kind: bytes
    size: int

    @property
    def is_regular(self) -> bool:
        return self.kind in _REGULAR and not self.name.endswith("/")


def is_tar(start: bytes) -> bool:
    """By its first 262 bytes; a tar from before 1988 says nothing there."""
    return start[257:262] == b"ustar" or start.startswith(COMPRESSED)


def regular_files(tar: IO[bytes], wanted: Callable[[str], bool], most_bytes: int) -> Iterator[tuple[str, bytes | None]]:
    """The regular files of a tar, in its order, with the bytes of those wanted by name, of each at most so many.

    Links, devices and folders are passed over. The data of what is not wanted is skipped over; in a compressed tar it
    is unpacked, and thrown away.

    Raises:
        ValueError, OSError, EOFError: it is no whole tar, holds a sparse file, or unpacks to more than
            ``most_unpacked`` of its size.
    """
    try:
        stream = _Stream(tar)
        while (header := _next_header(stream)) is not None:
            end = stream.position + (0 if header.kind in _NO_DATA else -(-header.size // _BLOCK) * _BLOCK)
            stream.expect(stream.position + (0 if header.kind in _NO_DATA else header.size))
            if header.is_regular:
                yield header.name, stream.exactly(min(header.size, most_bytes)) if wanted(header.name) else None
            stream.skip_to(end)
    except (zlib.error, lzma.LZMAError) as error:
        raise ValueError(error) from None


class _Stream:
    """The unpacked bytes of a tar, forwards."""

    def __init__(self, tar: IO[bytes]) -> None:
        size = tar.seek(0, 2)
        tar.seek(0)
        start = tar.read(max(map(len, _OPENERS)))
        tar.seek(0)
        opener = next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), None)
        self._file = opener(tar) if opener else tar
        self._is_compressed = opener is not None
        self._most = most_unpacked(size) if opener else size
        self.position = 0

    def expect(self, end: int) -> None:
        """Raises ValueError where so many bytes cannot be, or should not be unpacked."""
        if end <= self._most:
            return
        if not self._is_compressed:
            raise ValueError("unexpected end of data")
        raise ValueError(f"it unpacks to more than {self._most:,} bytes, far more than its own: unpack it first")

    def read(self, num_bytes: int) -> bytes:
        """Fewer at the end."""
        self.expect(self.position + (num_bytes if self._is_compressed else 0))
        content = self._file.read(num_bytes)
        self.position += len(content)
        return content

    def exactly(self, num_bytes: int) -> bytes:
        content = self.read(num_bytes)
        if len(content) < num_bytes:
            raise ValueError("unexpected end of data")
        return content

    def skip_to(self, end: int) -> None:
        """The last member's data need not fill its block."""
        if end > self.position:
            self.position = self._file.seek(end)


def _next_header(stream: _Stream) -> _Header | None:
    """Of the next member, with what the headers before it say of it; None: the end."""
    name, size = None, None
    for _ in range(_MOST_HEADERS):
        start = stream.position
        block = stream.read(_BLOCK)
        if len(block) == _BLOCK and not any(block):
            return None
        if len(block) < _BLOCK:
            raise ValueError("it has no end: it is cut")
        header = _parsed(block, start)
        if header.kind == _SPARSE:
            raise ValueError(f"{header.name} is packed as a sparse file: pack without --sparse")
        if header.kind not in (_LONG_NAME, _LONG_LINK, _PAX_GLOBAL) and header.kind not in _PAX:
            return header._replace(
                name=header.name if name is None else name, size=header.size if size is None else size
            )
        content = _said(stream, header)
        if header.kind == _LONG_NAME:
            name = _text(content)
        elif header.kind in _PAX or header.kind == _PAX_GLOBAL:
            records = _records(content)
            if any(key.startswith(b"GNU.sparse") for key in records):
                raise ValueError("a file of it is packed as a sparse file: pack without --sparse")
            if header.kind in _PAX:
                name = _text(records[b"path"]) if b"path" in records else name
                size = _whole(records[b"size"], 10) if b"size" in records else size
    raise ValueError(f"more than {_MOST_HEADERS} headers of one member")


def _said(stream: _Stream, header: _Header) -> bytes:
    """What a header that says more of the next one says."""
    if header.size > _MOST_HEADER_BYTES:
        raise ValueError(f"a header of {header.size:,} bytes")
    content = stream.exactly(header.size)
    stream.exactly(-header.size % _BLOCK)
    return content


def _parsed(block: bytes, start: int) -> _Header:
    digits = block[148:156].strip(b"\0 ")
    said = int(digits, 8) if _OCTAL.fullmatch(digits) else -1
    if said != 256 + sum(block) - sum(block[148:156]) and said != _signed_sum(block):
        raise ValueError(f"the header at byte {start:,} is damaged")
    name, prefix = _text(block[:100]), _text(block[345:500])
    if prefix and block[257:263] == b"ustar\0":  # GNU's own format keeps times there
        name = f"{prefix}/{name}"
    return _Header(name, block[156:157], _number(block[124:136]))


def _signed_sum(block: bytes) -> int:
    """Of some old tars, whose characters have a sign."""
    return 256 + sum(byte - 256 if byte > 127 else byte for byte in block[:148] + block[156:])


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _number(field: bytes) -> int:
    """Octal digits, or GNU's 256-ary ones behind a byte 0x80."""
    if field[0] == 0x80:
        number = int.from_bytes(field[1:], "big")
        if number >= _MOST_SIZE:
            raise ValueError("a number without bounds")
        return number
    return _whole(field.partition(b"\0")[0].strip() or b"0", 8)


def _whole(digits: bytes, base: int) -> int:
    known = _OCTAL if base == 8 else _DECIMAL
    if not known.fullmatch(digits) or (number := int(digits, base)) >= _MOST_SIZE:
        raise ValueError(f"a number that is none ({digits[:20]!r})")
    return number


def _records(content: bytes) -> dict[bytes, bytes]:
    """``"%d %s=%s\\n" % (length of all this, key, value)``, one after the other."""
    records, position = {}, 0
    while position < len(content) and content[position]:
        digits, space, _ = content[position : position + 21].partition(b" ")
        length = _whole(digits, 10) if space else 0
        record = content[position + len(digits) + 1 : position + length]
        key, equals, value = record.partition(b"=")
        if not (equals and value.endswith(b"\n") and position + length <= len(content)):
            raise ValueError("an extended header that is damaged")
        records[key] = value[:-1]
        position += length
    return records
