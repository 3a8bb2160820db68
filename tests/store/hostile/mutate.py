"""Change the bytes of real files the way damage and malice do."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

_NUMBERS = (
    0,
    1,
    2,
    127,
    128,
    255,
    256,
    32767,
    65535,
    60000,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**62,
    2**63 - 1,
    2**64 - 1,
)
_FORMATS = ("B", "<H", ">H", "<I", ">I", "<Q", ">Q")
_HEAD = 256  # most lengths and sizes lie in these first bytes

Mutation = Callable[[bytearray, random.Random, Sequence[bytes]], None]


def mutated(seeds: Sequence[bytes], choose: random.Random) -> bytes:
    """Return one of the files with one to four changes."""
    content = bytearray(choose.choice(seeds))
    for _ in range(choose.choice((1, 1, 1, 2, 3, 4))):
        choose.choice(_MUTATIONS)(content, choose, seeds)
    return bytes(content)


def _place(content: bytearray, choose: random.Random) -> int:
    end = choose.choice((len(content), min(_HEAD, len(content))))
    return choose.randrange(end) if end else 0


def _span(content: bytearray, choose: random.Random) -> slice:
    start = _place(content, choose)
    return slice(start, start + choose.choice((1, 4, 64, 512, len(content))))


def _flip(content: bytearray, choose: random.Random, _: Sequence[bytes]) -> None:
    for _ in range(choose.choice((1, 1, 8))):
        if content:
            content[_place(content, choose)] ^= 1 << choose.randrange(8)


def _number(content: bytearray, choose: random.Random, _: Sequence[bytes]) -> None:
    """Replace a number, which may be a length, an offset or a size."""
    layout = choose.choice(_FORMATS)
    size, place = struct.calcsize(layout), _place(content, choose)
    if place + size <= len(content):
        value = choose.choice(
            (choose.choice(_NUMBERS), struct.unpack_from(layout, content, place)[0] + choose.choice((-1, 1)))
        )
        struct.pack_into(layout, content, place, value % (1 << 8 * size))


def _cut(content: bytearray, choose: random.Random, _: Sequence[bytes]) -> None:
    del content[_place(content, choose) :]


def _drop(content: bytearray, choose: random.Random, _: Sequence[bytes]) -> None:
    del content[_span(content, choose)]


def _zero(content: bytearray, choose: random.Random, _: Sequence[bytes]) -> None:
    span = _span(content, choose)
    content[span] = bytes([choose.choice((0, 255))]) * len(content[span])


def _double(content: bytearray, choose: random.Random, _: Sequence[bytes]) -> None:
    span = _span(content, choose)
    content[span.start : span.start] = content[span] * choose.choice((1, 1, 20))


def _splice(content: bytearray, choose: random.Random, others: Sequence[bytes]) -> None:
    other = bytearray(choose.choice(others))
    content[_place(content, choose) :] = other[_place(other, choose) :]


_MUTATIONS: tuple[Mutation, ...] = (_flip, _flip, _number, _number, _number, _cut, _drop, _zero, _double, _splice)
