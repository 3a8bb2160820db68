"""A reader of tar files that goes forwards, one header at a time, and does not use Python's tarfile.

tarfile acts on what a header says before a caller can look at it: it reads endless sparse maps, takes time and memory
that grow with the square of a record's length, recurses over headers of headers, follows in some versions members that
lie before themselves for ever, and mistakes a damaged header for the end. A tar of images needs little: names, sizes,
and the way from one member to the next.

Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended Header"; GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import posixpath
import re
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

from ssl_dist.store.building.sources.files import max_unpacked_bytes

_BLOCK = 512
# An extension header describes the member that follows, for example by its long name.
_MAX_EXTENSION_BYTES = 1 << 20
_MAX_HEADERS = 16  # of one member, with its extension headers
_MAX_SIZE = 1 << 63
_OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_REGULAR, _NO_DATA = b"0\x007", b"123456"  # kinds: 7, a contiguous file, is regular; links, devices, folders: no data
_HARD_LINK, _SYMBOLIC_LINK, _FOLDER = b"1", b"2", b"5"
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL, _SPARSE = b"L", b"K", b"xX", b"g", b"S"
_OCTAL, _DECIMAL = re.compile(rb"[0-7]{1,24}"), re.compile(rb"[0-9]{1,20}")


class TarMember(NamedTuple):
    """A member of a tar that is not a folder.

    Attributes:
        name: its path in the tar.
        content: the content of a regular file, if it was wanted.
        target: of a link, the path in the tar that it leads to; None: it is no link.
        is_regular: False for a link, a device or a pipe.
    """

    name: str
    content: bytes | None
    target: str | None
    is_regular: bool


class _Header(NamedTuple):
    name: str
    kind: bytes
    size: int
    link: str

    @property
    def target(self) -> str | None:
        """The path in the tar that a link leads to; a hard link's is written in full, as all names of the tar are."""
        if self.kind == _SYMBOLIC_LINK:
            return posixpath.normpath(posixpath.join(posixpath.dirname(self.name), self.link))
        return posixpath.normpath(self.link) if self.kind == _HARD_LINK else None


def is_tar(start: bytes) -> bool:
    """Return whether a file that begins with these 262 bytes is a tar, perhaps a compressed one.

    Tars from before 1988 have nothing to know them by.
    """
    return start[257:262] == b"ustar" or start.startswith(tuple(_OPENERS))


def read_members(tar: IO[bytes], wanted: Callable[[int, str], bool], max_bytes: int) -> Iterator[TarMember]:
    """Yield the members of a tar in its order, but no folders, with up to ``max_bytes`` of the content that is wanted.

    Data that is not wanted is skipped; in a compressed tar it is unpacked and discarded.

    Args:
        wanted: gets the number of a regular file, counted over all that is yielded, and its name.

    Raises:
        ValueError, OSError, EOFError: the tar is damaged or cut, contains a sparse file, or unpacks to more than
            ``max_unpacked_bytes`` of its size.
    """
    try:
        stream, number = _Stream(tar), 0
        while (header := _read_member_header(stream)) is not None:
            data_bytes = 0 if header.kind in _NO_DATA else header.size
            end = stream.position + -(-data_bytes // _BLOCK) * _BLOCK
            stream.expect(stream.position + data_bytes)
            is_regular, content = header.kind in _REGULAR, None
            if header.kind != _FOLDER and not header.name.endswith("/"):
                if is_regular and wanted(number, header.name):
                    content = stream.read_exactly(min(data_bytes, max_bytes))
                yield TarMember(header.name, content, header.target, is_regular)
                number += 1
            stream.skip_to(end)
    except (zlib.error, lzma.LZMAError) as error:
        raise ValueError(error) from None


class _Stream:
    """The unpacked bytes of a tar, read forwards."""

    def __init__(self, tar: IO[bytes]) -> None:
        size = tar.seek(0, 2)
        tar.seek(0)
        start = tar.read(max(map(len, _OPENERS)))
        tar.seek(0)
        opener = next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), None)
        self._file = opener(tar) if opener else tar
        self._is_compressed = opener is not None
        self._limit = max_unpacked_bytes(size) if opener else size
        self.position = 0

    def expect(self, end: int) -> None:
        """Raise ValueError if the tar cannot have bytes up to ``end``, or would unpack to too many."""
        limit = self._limit
        if end > limit and self._is_compressed:
            raise ValueError(f"it unpacks to more than {limit:,} bytes, far more than the file has: unpack it first")
        if end > limit:
            raise ValueError("unexpected end of data")

    def read(self, num_bytes: int) -> bytes:
        """Read bytes; at the end there are fewer."""
        self.expect(self.position + (num_bytes if self._is_compressed else 0))
        content = self._file.read(num_bytes)
        self.position += len(content)
        return content

    def read_exactly(self, num_bytes: int) -> bytes:
        """Read bytes; raise ValueError if there are fewer."""
        content = self.read(num_bytes)
        if len(content) < num_bytes:
            raise ValueError("unexpected end of data")
        return content

    def skip_to(self, end: int) -> None:
        """Move forwards; the end may lie behind the file's, since the last member need not fill its block."""
        if end > self.position:
            self.position = self._file.seek(end)


def _read_member_header(stream: _Stream) -> _Header | None:
    """Read the next member's header and the extension headers before it; None: the tar ends here."""
    extensions: dict[str, Any] = {}
    for _ in range(_MAX_HEADERS):
        block = _next_block(stream)
        if block is None:
            return None
        if len(block) < _BLOCK:
            raise ValueError("it has no end: it is cut")
        header = _parse_header(block, stream.position - _BLOCK)
        if header.kind == _SPARSE:
            raise ValueError(f"{header.name} is packed as a sparse file: pack without --sparse")
        if header.kind not in (_LONG_NAME, _LONG_LINK, _PAX_GLOBAL) and header.kind not in _PAX:
            return header._replace(**extensions)
        if header.size > _MAX_EXTENSION_BYTES:
            raise ValueError(f"it has a header of {header.size:,} bytes")
        content = stream.read_exactly(header.size)
        stream.read_exactly(-header.size % _BLOCK)
        records = _parse_records(content) if header.kind in _PAX + _PAX_GLOBAL else {}
        if any(key.startswith(b"GNU.sparse") for key in records):
            raise ValueError("one of its files is packed as a sparse file: pack without --sparse")
        if header.kind == _LONG_NAME:
            extensions["name"] = _parse_text(content)
        if header.kind == _LONG_LINK:
            extensions["link"] = _parse_text(content)
        if header.kind in _PAX and b"path" in records:
            extensions["name"] = _parse_text(records[b"path"])
        if header.kind in _PAX and b"linkpath" in records:
            extensions["link"] = _parse_text(records[b"linkpath"])
        if header.kind in _PAX and b"size" in records:
            extensions["size"] = _parse_digits(records[b"size"], _DECIMAL, 10)
    raise ValueError(f"one member has more than {_MAX_HEADERS} headers")


def _next_block(stream: _Stream) -> bytes | None:
    """Read a block that is not empty; None: empty ones end the tar, and no other tar was joined to it (``cat a b``)."""
    block, has_ended = stream.read(_BLOCK), False
    while len(block) == _BLOCK and not any(block):
        block, has_ended = stream.read(_BLOCK), True
    return None if has_ended and block[257:262] != b"ustar" else block


def _parse_header(block: bytes, start: int) -> _Header:
    digits = block[148:156].strip(b"\0 ")
    checksum = int(digits, 8) if _OCTAL.fullmatch(digits) else -1
    if checksum != 256 + sum(block) - sum(block[148:156]) and checksum != _signed_checksum(block):
        raise ValueError(f"the header at byte {start:,} is damaged")
    name, prefix = _parse_text(block[:100]), _parse_text(block[345:500])
    if prefix and block[257:263] == b"ustar\0":  # GNU's own format has times in this field
        name = f"{prefix}/{name}"
    return _Header(name, block[156:157], _parse_size(block[124:136]), _parse_text(block[157:257]))


def _signed_checksum(block: bytes) -> int:
    """Return the checksum as some old programs compute it, whose characters are signed."""
    return 256 + sum(byte - 256 if byte > 127 else byte for byte in block[:148] + block[156:])


def _parse_text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _parse_size(field: bytes) -> int:
    """Parse octal digits, or GNU's binary number behind a byte 0x80."""
    if field[0] != 0x80:
        return _parse_digits(field.partition(b"\0")[0].strip() or b"0", _OCTAL, 8)
    if (size := int.from_bytes(field[1:], "big")) >= _MAX_SIZE:
        raise ValueError("it has a size that no file can have")
    return size


def _parse_digits(digits: bytes, pattern: re.Pattern[bytes], base: int) -> int:
    if not pattern.fullmatch(digits) or (number := int(digits, base)) >= _MAX_SIZE:
        raise ValueError(f"a field of its header is no valid number ({digits[:20]!r})")
    return number


def _parse_records(content: bytes) -> dict[bytes, bytes]:
    """Parse a pax header: records ``"%d %s=%s\\n" % (length of this record, key, value)``, one after the other."""
    records, position = {}, 0
    while position < len(content) and content[position]:
        digits, space, _ = content[position : position + 21].partition(b" ")
        length = _parse_digits(digits, _DECIMAL, 10) if space else 0
        record = content[position + len(digits) + 1 : position + length]
        key, equals, value = record.partition(b"=")
        if not (equals and value.endswith(b"\n") and position + length <= len(content)):
            raise ValueError("it has an extended header that is damaged")
        records[key] = value[:-1]
        position += length
    return records
