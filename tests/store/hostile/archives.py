"""Hostile tars and WebDataset shards: every kind of header, compressed and not, and headers with false sizes."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ssl_dist.errors import Unreadable
from ssl_dist.store.building.shard_writer import decode_member
from ssl_dist.store.building.sources import list_source
from tests.store.hostile.meter import Case
from tests.store.hostile.mutate import mutated

_PACKERS: tuple[Callable[[bytes], bytes], ...] = (gzip.compress, bz2.compress, lzma.compress)
_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)


def read_all(path: Path) -> None:
    """Read everything that a build reads of a source."""
    listed = list_source(path)
    listed.select((0, 0.5))
    for member in listed.members():
        try:
            image = decode_member(member, 16)
        except Unreadable:
            continue
        assert image.shape == (16, 16, 3)
        assert member.label == -1 or 0 <= member.label < len(listed.class_names)


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def tar_of(files: dict[str, bytes], layout: int = tarfile.PAX_FORMAT, **options: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=layout, **options) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for number, kind in enumerate(
            (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
        ):
            other = tarfile.TarInfo(f"other{number}.png")
            other.type, other.linkname = kind, "../" * 9 + "etc/passwd"
            archive.addfile(other)
    return buffer.getvalue()


def header(name: str, kind: bytes, size: int = 0, **changes: bytes) -> bytes:
    """Return a header block with the right checksum; ``at124=b"..."`` puts bytes at offset 124."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT)[-_BLOCK:])
    for place, content in changes.items():
        block[int(place[2:]) : int(place[2:]) + len(content)] = content
    return summed(block)


def summed(block: bytes | bytearray) -> bytes:
    return bytes(block[:148]) + b"%06o\0 " % (256 + sum(block[:148]) + sum(block[156:])) + bytes(block[156:])


def extension(kind: bytes, content: bytes) -> bytes:
    """Return an extension header, which describes the header that follows."""
    return header("x", kind, len(content)) + content + bytes(-len(content) % _BLOCK)


def record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    length += len(str(length + len(str(length))))
    return b"%d %s=%s\n" % (length, key, value)


def sparse_map_without_end(num_blocks: int) -> bytes:
    """Return a compressed tar whose sparse map has this many blocks; compressed it has kilobytes."""
    return gzip.compress(header("a.png", b"S", at482=b"\1", at483=b"17777777777\0") + num_blocks * (b"1" * _BLOCK))


def records_in_records(length: int) -> bytes:
    """Return the content of a pax header in which every second byte begins a record that reaches to the end."""
    return b"2 " * (length // 2) + b"="


def xz_of_a_large_dictionary(content: bytes) -> bytes:
    """Compress with a header that asks the reader for 3 GiB."""
    packed = bytearray(lzma.compress(content))
    block = slice(12, 12 + packed[12] * 4)
    packed[16] = 39
    packed[block.stop : block.stop + 4] = zlib.crc32(packed[block]).to_bytes(4, "little")
    return bytes(packed)


def bombs() -> Iterator[bytes]:
    image = png(0)
    member = header("a.png", b"0", len(image)) + image + bytes(-len(image) % _BLOCK)
    back = header("b.png", b"0", at124=b"\xff" * 11 + bytes([0xFC]))  # size -1024: leads back to earlier members
    yield member + back + member + _END
    yield member + extension(b"x", record(b"size", b"-2048")) + member + _END
    yield extension(b"x", records_in_records((1 << 20) - 2)) + member + _END
    yield gzip.compress(100 * extension(b"x", record(b"comment", bytes(500000))) + member + _END)
    yield gzip.compress(100 * (extension(b"g", record(b"comment", bytes(500000))) + member) + _END)
    yield 2000 * extension(b"L", b"name\0") + member + _END
    yield 2000 * header("x", b"g") + member + _END
    yield sparse_map_without_end(40_000)
    yield (
        extension(b"x", record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.minor", b"0")) + member + bytes(1 << 20)
    )
    yield (
        extension(b"x", record(b"GNU.sparse.map", b"0,1," * 10000) + record(b"GNU.sparse.size", b"1" * 18))
        + member
        + _END
    )
    yield header("a.png", b"0", at124=b"\x80" + b"\x7f" * 11) + _END
    yield header("a.png", b"0", at124=b"77777777777\0") + _END
    large = bytes(24 << 20)
    for pack in _PACKERS:
        yield pack(header("a.png", b"0", 24 << 20) + large + _END)
        yield pack(header("a.txt", b"0", 24 << 20) + large + member + _END)
        yield pack(pack(pack(member + _END)))
        yield pack(member)
    yield gzip.compress(30_000 * header("a.txt", b"0") + member + _END)
    yield member + 10_000 * header("a.txt", b"0") + _END
    yield gzip.compress(member + _END) + 20_000 * gzip.compress(b"")
    yield tar_of({"/" * 90 + "a.png": image, "a/" * 2000 + "b.png": image, "\udcff\n\x1b.png": image, ".png": image})
    yield tar_of({"a.png": image, "a.cls": b"9" * 300, "b.cls": b"1"})
    yield tar_of({"a.png": image, "a.cls": "٣".encode(), "b.cls": b""})
    yield tar_of({f"{number}.cls": b"999999" for number in range(2000)} | {"1.png": image})
    yield xz_of_a_large_dictionary(member + _END)
    yield b"PK\3\4" + member
    yield b"\x1f\x8b" + bytes(1000)
    yield from (_END, b"", bytes(100), member, member[:700])


def seeds() -> list[bytes]:
    flat = {"a.png": png(1), "b.jpg": png(2), "notes.txt": b"notes", "../../c.png": png(3)}
    deep = {f"train/{'x' * 150}/{number}.png": png(number) for number in range(3)}
    shard: dict[str, bytes] = {}
    for number in range(4):
        shard |= {f"{number:04d}.png": png(number), f"{number:04d}.cls": b"%d\n" % number, f"{number:04d}.json": b"{}"}
    made = [
        tar_of(files, layout) for files in (flat, deep, shard) for layout in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    ]
    made.append(tar_of({"a/b/1.png": png(1), "a/c/2.png": png(2)}, tarfile.USTAR_FORMAT))
    made.append(tar_of({"ü/1.png": png(1)}, pax_headers={"comment": "of all"}))
    return made + [pack(content) for pack in _PACKERS for content in made[3:5]]


def resummed(content: bytes) -> bytes:
    """Correct the checksums of the headers, so that the reader believes a changed field."""
    out, position = bytearray(content), 0
    while position + _BLOCK <= len(out):
        block = out[position : position + _BLOCK]
        out[position : position + _BLOCK] = summed(block) if any(block) else block
        try:
            size = int(bytes(block[124:136]).strip(b"\0 ") or b"0", 8)
        except ValueError:
            break
        position += _BLOCK + -(-size // _BLOCK) * _BLOCK
    return bytes(out)


def cases(folder: Path, seed: int) -> Iterator[Case]:
    choose, real = random.Random(seed), seeds()
    path = folder / "a.tar"

    def case(content: bytes) -> Case:
        path.write_bytes(content)
        return Case(lambda: read_all(path), content)

    yield from map(case, real)
    yield from map(case, bombs())
    while True:
        content = mutated(real, choose)
        if b"ustar" in content[:_BLOCK] and choose.random() < 0.6:
            content = resummed(content)
        if choose.random() < 0.1:
            content = choose.choice(_PACKERS)(content)
        yield case(content)
